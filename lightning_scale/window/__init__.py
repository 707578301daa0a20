"""The window: which samples the next optimizer step is made of, and the adapter that makes Lightning's loop follow it."""

from __future__ import annotations

from lightning_scale.window.adapter import LoopAdapter
from lightning_scale.window.owner import BatchSizeOwner
from lightning_scale.window.stages import StageFollower
from lightning_scale.window.window import LastWindow, micro_batches_for

__all__ = ["BatchSizeOwner", "LastWindow", "LoopAdapter", "StageFollower", "micro_batches_for"]
