"""Going on from the newest whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_scale.checkpoints import (
    Choice,
    WholeFileIO,
    as_save_error,
    checkpoint_folders,
    chosen_path,
    newest_whole,
)
from lightning_scale.checkpoints.manifest import manifest_path, write_manifest
from lightning_scale.checkpoints.plain import warn_of_what_cannot_be_loaded
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import CheckpointAccess


class Resume(L.Callback):
    """One program for a run's first start and for every restart.

    After each save rank 0 writes a manifest beside the checkpoint: size and SHA-256 of every file. At the start of ``fit``
    rank 0 looks for the newest checkpoint that agrees with its manifest, and all ranks load that one; one that was cut or
    changed is named and passed over. Where there is none, training starts anew. The log says which, in one line.

    A run is its folders: the ``dirpath`` of each ModelCheckpoint; those without one write to ``checkpoints`` in the
    Trainer's ``default_root_dir``, not to the logger's folder, which changes with every start. On clusters the folder must
    be one that all nodes see.

    Args:
        checkpoint: "auto", or the path of a checkpoint to go on from (one that has a manifest must agree with it).

    Raises:
        ConfigurationError: where ``fit`` is told a ``ckpt_path`` too, a path is not there or not whole, or checkpoints are
            written elsewhere than to a local path or behind the run's back (AsyncCheckpointIO).
    """

    def __init__(self, checkpoint: str = "auto") -> None:
        self.checkpoint = checkpoint
        self._access: CheckpointAccess | None = None
        self._read_back = False  # whether a folder has been

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._put_back()  # what a fit that raised has left
        folders = checkpoint_folders(trainer)
        _refuse_unseen_saves(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFileIO()
        self._access = access = CheckpointAccess(trainer)
        access.after_saving(self._after_saving, writing=as_save_error)
        access.before_removing(lambda path: manifest_path(path).unlink(missing_ok=True))
        access.choose_checkpoint(lambda given: self._choose(trainer, folders, given))

    def _after_saving(self, path: Path, step: int, training_state: bool) -> None:
        write_manifest(path, step, training_state)
        if path.is_dir() and not self._read_back:
            self._read_back = True
            for file in sorted(path.glob("*.pt")):  # what is no tensor, as Lightning writes it
                warn_of_what_cannot_be_loaded(file)

    def _choose(self, trainer: L.Trainer, folders: list[Path], given: str | None) -> str | None:
        """What all ranks load: rank 0 looks, for file systems may show ranks different things for a while."""
        if given is not None and not _lightnings_own(trainer, given):
            raise ConfigurationError(
                f"the run is told to go on from {given} (ckpt_path) and from {self.checkpoint!r} (resume): keep one of them."
            )
        found: Choice | str | None = None
        if trainer.is_global_zero:
            try:
                found = self._find([*folders, *([Path(given).parent] if given else [])])
            except ConfigurationError as error:
                found = str(error)  # the other ranks are waiting for an answer
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise ConfigurationError(found)
        assert found is not None
        for path, fault in found.skipped:
            rank_zero_warn(f"{path} is not whole and is passed over: {fault}.")
        if found.path is None:
            rank_zero_info(f"resume: a fresh start, for there is no whole checkpoint in {_listed(folders)}.")
        else:
            rank_zero_info(f"resume: going on from {found.path}" + (f" (step {found.step})." if found.step else "."))
        return found.path

    def _find(self, folders: list[Path]) -> Choice:
        return newest_whole(folders) if self.checkpoint == "auto" else chosen_path(self.checkpoint)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._put_back()

    def _put_back(self) -> None:
        if self._access is not None:
            self._access.restore()
            self._access = None


def _refuse_unseen_saves(trainer: L.Trainer) -> None:
    if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
        raise ConfigurationError(
            "AsyncCheckpointIO says that a checkpoint is saved before it is, so no manifest can be written: leave it out,"
            " or leave resume out."
        )


def _lightnings_own(trainer: L.Trainer, path: str) -> bool:
    """Whether it was Lightning that chose a checkpoint, and nobody told it to."""
    on_exception = any(isinstance(callback, OnExceptionCheckpoint) for callback in _callbacks(trainer))
    return on_exception or Path(path).name.startswith("hpc_ckpt_")


def _callbacks(trainer: L.Trainer) -> list[Any]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _listed(folders: list[Path]) -> str:
    return " or ".join(map(str, folders))
