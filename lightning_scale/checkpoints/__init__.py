"""Checkpoints: how they are written whole, recognised as whole, and loaded without running anything in them."""

from __future__ import annotations

from lightning_scale.checkpoints.newest import Choice, checkpoint_folders, chosen_path, newest_whole
from lightning_scale.checkpoints.whole_file import SaveError, WholeFileIO, as_save_error

__all__ = [
    "Choice",
    "SaveError",
    "WholeFileIO",
    "as_save_error",
    "checkpoint_folders",
    "chosen_path",
    "newest_whole",
]
