"""The window: which samples the next optimizer step is made of, and the adapter that makes Lightning's loop follow it."""

from __future__ import annotations

from lightning_scale.window.adapter import LoopAdapter
from lightning_scale.window.random_streams import RandomState, RandomStreams
from lightning_scale.window.stages import StageController
from lightning_scale.window.window import BatchSizeOwner

__all__ = ["BatchSizeOwner", "LoopAdapter", "RandomState", "RandomStreams", "StageController"]
