"""The window: which samples the next optimizer step is made of, and the adapter that makes Lightning's loop follow it."""

from __future__ import annotations

from lightning_scale.window.adapter import LoopAdapter
from lightning_scale.window.owner import BatchSizeOwner
from lightning_scale.window.random_state import RandomState
from lightning_scale.window.random_streams import RandomStreams
from lightning_scale.window.stages import StageFollower

__all__ = ["BatchSizeOwner", "LoopAdapter", "RandomState", "RandomStreams", "StageFollower"]
