"""Where a run keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.errors import ConfigurationError


def checkpoint_folders(trainer: L.Trainer) -> list[Path]:
    """The folders of every ModelCheckpoint; one that has none yet is given ``checkpoints`` in ``default_root_dir``.

    Lightning would give it the logger's folder of this start: the next start would not look there.

    Raises:
        ConfigurationError: for a folder that is not of the local file system.
    """
    default = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
    folders = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is None:
                callback.dirpath = default
            folders.append(str(callback.dirpath))
    for folder in folders or [trainer.default_root_dir]:
        if "://" in folder:
            raise ConfigurationError(
                f"checkpoints go to {folder}, and resume looks for whole ones in local folders: use a mounted one."
            )
    return [Path(folder) for folder in dict.fromkeys(folders or [default])]
