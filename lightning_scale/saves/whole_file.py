"""Checkpoint files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class WholeFileIO(TorchCheckpointIO):
    """Writes beside the file's place, and renames.

    Lightning's own writes to the system's temporary folder, which may be another disk: moving from there is copying, and
    a copy can end half-way. It also holds the whole file in memory twice; this one writes straight to disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to a local path; to others as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(".checkpoint.partial")  # one name, so that crashes do not fill the disk
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
