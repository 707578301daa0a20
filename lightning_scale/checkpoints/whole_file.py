"""Checkpoint files that appear whole or not at all, run nothing when loaded, and say why where they cannot be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException

from lightning_scale.checkpoints.plain import refusing, warn_of_what_cannot_be_loaded
from lightning_scale.lightning_internals import load_file


class WholeFileIO(TorchCheckpointIO):
    """Writes beside the file, and renames.

    Lightning's own writes to the system's temporary folder, which may be another disk: moving from there is copying, and
    a copy can end half-way. It also holds the whole file in memory twice; this one writes straight to disk.

    Loads tensors and plain values only, unless it is told ``weights_only=False``. Lightning leaves that to torch (which a
    variable of the environment changes), and loads addresses of the web with whatever they hold.
    """

    _read_back = False  # whether one of its files has been

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save to a local path; to others as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file_path = Path(path)
        file_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = file_path.with_name(".checkpoint.partial")  # one name, so that crashes do not fill the disk
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, file_path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if not self._read_back:
            self._read_back = True
            warn_of_what_cannot_be_loaded(file_path)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load from a local path, or from wherever Lightning can.

        Raises:
            UnsafeCheckpointError: for a file that holds more than tensors and plain values.
        """
        with refusing(path):
            return load_file(path, map_location, weights_only is not False)


class SaveError(RuntimeError):
    """A checkpoint could not be written: which one, and why. Those before it are as they were."""


@contextmanager
def as_save_error(path: Any) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is written into a `SaveError`.

    Training stops with it: a run whose checkpoints fail loses the more the longer it goes on.
    """
    try:
        yield
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise SaveError(
            f"{path} could not be saved ({_cause(error)}; {_free(path)}): training stops here. Earlier checkpoints are"
            " whole; once there is room, the same command line with --resume auto goes on from the newest."
        ) from error


def _free(path: Any) -> str:
    """How much room there is: what ranks tell each other of an error leaves out the system's reason."""
    try:
        return f"{shutil.disk_usage(Path(path).parent).free / 1e6:.1f} MB are free there"
    except OSError:
        return "its folder cannot be seen"


def _cause(error: BaseException) -> str:
    """The system's own word, where it is among the causes: torch says only that a write failed."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (failure, _) = min(error.failures.items())
        return f"rank {rank}: {_cause(failure)}"
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
