"""Checkpoint files that appear whole or not at all, and run nothing when they are loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_scale.lightning_internals import load_file
from lightning_scale.saves.plain import refusing


class WholeFileIO(TorchCheckpointIO):
    """Writes beside the file's place, and renames.

    Lightning's own writes to the system's temporary folder, which may be another disk: moving from there is copying, and
    a copy can end half-way. It also holds the whole file in memory twice; this one writes straight to disk.

    Loads tensors and plain values only, unless it is told ``weights_only=False``. Lightning leaves that to torch (which a
    variable of the environment changes), and loads addresses of the web with whatever they hold.
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

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load from a local path, or from wherever Lightning can.

        Raises:
            UnsafeCheckpointError: for a file that holds more than tensors and plain values.
        """
        with refusing(path):
            return load_file(path, map_location, weights_only is not False)
