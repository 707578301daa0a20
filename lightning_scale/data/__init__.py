"""Data that follows training: resumable order, stages."""

from __future__ import annotations

from lightning_scale.data.sampler import ResumableBatchSampler, is_resumable
from lightning_scale.data.staged import StageData, StagedDataModule

__all__ = ["ResumableBatchSampler", "StageData", "StagedDataModule", "is_resumable"]
