"""Whole checkpoints: how one is recognised, which is the newest, and how a run goes on from it."""

from __future__ import annotations

from lightning_scale.saves.newest import Choice, chosen_path, newest_whole
from lightning_scale.saves.save_error import SaveError
from lightning_scale.saves.whole_file import WholeFileIO

__all__ = ["Choice", "SaveError", "WholeFileIO", "chosen_path", "newest_whole"]
