"""Where a Trainer saves, removes and loads checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.fabric.utilities import cloud_io

from lightning_scale.lightning_internals import names
from lightning_scale.lightning_internals.replacing import Replacing


class CheckpointAccess(Replacing):
    """What is replaced in one Trainer while it fits, and how it is put back.

    It is the strategy that saves, whatever asked for it: files by one rank, or folders by all of them.

    Args:
        trainer: The Trainer, in ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__()
        names.check(names.TRAINER, trainer)
        self._trainer: Any = trainer
        self._connector: Any = self._trainer._checkpoint_connector

    def after_saving(
        self,
        note: Callable[[Path, int, bool], None],
        writing: Callable[[Any], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """On rank 0, call ``note(checkpoint, step, training_state)`` when all ranks have written their share.

        Args:
            note: What is called; ``training_state`` is False for weights alone.
            writing: What this rank writes, ``note`` included, is written inside ``writing(checkpoint)``.
        """
        strategy = self._trainer.strategy

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def save_checkpoint(checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
                step, training_state = int(checkpoint["global_step"]), "optimizer_states" in checkpoint
                with writing(filepath):
                    original(checkpoint, filepath, storage_options=storage_options)
                strategy.barrier("checkpoint written")
                if self._trainer.is_global_zero:
                    with writing(filepath):
                        note(Path(filepath), step, training_state)

            return save_checkpoint

        self._replace(strategy, "save_checkpoint", make)

    def before_removing(self, note: Callable[[Path], None]) -> None:
        """On rank 0, call ``note(checkpoint)`` before one is removed."""

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def remove_checkpoint(filepath: Any) -> None:
                if self._trainer.is_global_zero:
                    note(Path(filepath))
                original(filepath)

            return remove_checkpoint

        self._replace(self._trainer.strategy, "remove_checkpoint", make)

    def choose_checkpoint(self, choose: Callable[[str | None], str | None]) -> None:
        """Let ``choose(path)`` say what is loaded in place of what ``fit`` was told; it is called on all ranks.

        At that time there is a process group; when ``fit`` takes its ``ckpt_path`` there is none yet.
        """

        def make(original: Callable[..., None]) -> Callable[..., None]:
            def resume_start(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
                given = None if checkpoint_path is None else str(checkpoint_path)
                original(choose(given), *args, **kwargs)

            return resume_start

        self._replace(self._connector, "resume_start", make)


def load_file(path: Any, map_location: Any, weights_only: bool) -> dict[str, Any]:
    """Load a checkpoint file from a local path, or from wherever Lightning can."""
    loaded: dict[str, Any] = cloud_io._load(path, map_location, weights_only)
    return loaded
