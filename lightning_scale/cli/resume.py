"""``lightning-scale fit --resume``: the callbacks it stands for."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import Resume, SaveOnSignal
from lightning_scale.errors import ConfigurationError

HELP = (
    "Go on from a checkpoint: auto for the newest whole one of this run (a fresh start where there is none), or a path."
    " Every checkpoint gets a manifest, and SIGTERM or SIGUSR1 end the run with a checkpoint. Not together with ckpt_path,"
    " which loads what it names without a look at its manifest."
)


def check_resume(resume: str, ckpt_path: Any) -> None:
    """Refuse what cannot be meant.

    Args:
        resume: "auto" or a path.
        ckpt_path: What ``fit`` is told.

    Raises:
        ConfigurationError: for two answers to the same question.
    """
    if not resume:
        raise ConfigurationError("resume is empty: write auto, or the path of a checkpoint.")
    if ckpt_path is not None:
        raise ConfigurationError(
            f"resume is {resume} and ckpt_path is {ckpt_path}, and both say where the run goes on from: keep one of them."
        )


def bring_callbacks(trainer: L.Trainer, resume: str, root: Any) -> None:
    """Add `Resume` and `SaveOnSignal` to a Trainer that has not begun, where the configuration has not.

    Args:
        trainer: The Trainer, before ``fit``.
        resume: "auto" or a path.
        root: ``trainer.default_root_dir``, as configured; the Trainer itself has the current folder in place of None.

    Raises:
        ConfigurationError: where nothing says which folder is this run's, or there is a `Resume` callback already.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, Resume) for callback in callbacks):
        raise ConfigurationError("resume is given, and there is a Resume callback: keep one of them.")
    named = [
        callback for callback in callbacks if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None
    ]
    if resume == "auto" and root is None and not named:
        raise ConfigurationError(
            "resume auto looks in the folder of this run, and none is named: give trainer.default_root_dir a folder of this"
            " run's own, or a ModelCheckpoint its dirpath."
        )
    callbacks.insert(0, Resume(resume))  # says where ModelCheckpoint writes, so it comes before
    if not any(isinstance(callback, SaveOnSignal) for callback in callbacks):
        callbacks.append(SaveOnSignal())  # saves what all others have done
