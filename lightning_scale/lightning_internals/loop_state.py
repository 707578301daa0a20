"""The counters of Lightning's training loop, and the loaders at hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L

from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import names

_UNLIMITED_EPOCHS = 1000  # what Lightning puts where the user gave neither max_epochs nor max_steps


class LoopState:
    """What the window reads and sets of one Trainer's loop.

    Args:
        trainer: The Trainer, in ``fit``.

    Raises:
        RuntimeError: where this version of Lightning lacks a part that is relied on; it names the version.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer: Any = trainer
        names.check(names.TRAINER, trainer)
        self._fit_loop: Any = trainer.fit_loop
        names.check(names.FIT_LOOP, self._fit_loop)
        self._epoch_loop: Any = self._fit_loop.epoch_loop
        names.check(names.EPOCH_LOOP, self._epoch_loop)
        names.check(names.VALIDATION_LOOP, self._epoch_loop.val_loop)
        names.check(names.OPTIMIZATION, self._epoch_loop.automatic_optimization)

    @property
    def steps(self) -> int:
        """Optimizer steps attempted so far."""
        return int(self._epoch_loop.global_step)

    @property
    def train_loaders(self) -> list[Any]:
        """The training loaders at hand; empty before there are any."""
        combined = self._fit_loop._combined_loader
        return list(combined.flattened) if combined is not None else []

    @property
    def micro_batches_per_epoch(self) -> float:
        """Micro-batches one rank takes in a Lightning epoch; inf where unknown."""
        return float(self._fit_loop.max_batches)

    @property
    def epoch_ends(self) -> bool:
        """Whether the present micro-batch is the Lightning epoch's last."""
        return bool(self._epoch_loop._num_ready_batches_reached())

    @property
    def micro_batch(self) -> int:
        """The number of the present micro-batch in its epoch, from 0."""
        return int(self._epoch_loop.batch_progress.current.ready) - 1

    @property
    def epoch_begun(self) -> bool:
        """Whether micro-batches of the present epoch were taken and others are left; after a resume, in the checkpoint."""
        batches = self._epoch_loop.batch_progress
        return bool(batches.current.ready > 0 and not batches.is_last_batch)

    @property
    def last_batch_done(self) -> bool:
        """After a resume: whether the checkpoint was saved at or after an epoch's last micro-batch."""
        return bool(self._epoch_loop.batch_progress.is_last_batch)

    def measure_epoch(self) -> None:
        """Read the training loader's length anew: where batch sizes change, an epoch's micro-batches do."""
        trainer, combined = self._trainer, self._fit_loop._combined_loader
        lengths = [self.limited(len(loader)) for loader in combined.flattened]
        combined.limits = lengths
        self._fit_loop.max_batches = max(lengths)
        if isinstance(getattr(trainer, "val_check_interval", None), float):  # missing where validation goes by time
            trainer.val_check_batch = max(1, int(self._fit_loop.max_batches * trainer.val_check_interval))

    def limited(self, micro_batches: int) -> int:
        """What ``limit_train_batches`` leaves of an epoch's micro-batches."""
        limit = self._trainer.limit_train_batches
        return min(micro_batches, limit) if isinstance(limit, int) else int(micro_batches * limit)

    def drop_loaders(self) -> None:
        """Forget training and validation loaders, so that they are asked for anew."""
        for loop in (self._fit_loop, self._epoch_loop.val_loop):
            if loop._data_fetcher is not None:
                loop._data_fetcher.teardown()  # ends the loaders' worker processes
                loop._data_fetcher = None
            loop._combined_loader = None

    def end_epoch(self) -> None:
        """Make the present micro-batch the Lightning epoch's last; validation at an epoch's end comes after it."""
        batches = self._epoch_loop.batch_progress
        batches.is_last_batch = True
        if self._trainer.val_check_batch == self._fit_loop.max_batches:
            self._trainer.val_check_batch = batches.current.ready

    @property
    def restored(self) -> bool:
        """Whether the counts are a checkpoint's, and training has not gone on from them yet."""
        return bool(self._fit_loop._loaded_from_state_dict)

    @property
    def stopping(self) -> bool:
        """Whether training ends with the present micro-batch because somebody asked for it."""
        return bool(self._trainer.should_stop and self._fit_loop._can_stop_early)

    # -- counting without training, for a plan -------------------------------------------------------------------------

    @property
    def limits(self) -> tuple[int, int]:
        """Optimizer steps and epochs after which training ends; -1 for no limit."""
        return int(self._epoch_loop.max_steps), int(self._fit_loop.max_epochs)

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return int(self._fit_loop.epoch_progress.current.processed)

    def load(self) -> None:
        """Make sure that there is a training loader, as before every epoch."""
        self._fit_loop.setup_data()

    def count_step(self, micro_batches: int, last: bool) -> None:
        """Count an optimizer step of so many micro-batches as taken, the epoch's ``last`` one perhaps.

        Schedulers that follow steps advance.
        """
        batches = self._epoch_loop.batch_progress
        batches.current.ready += micro_batches
        batches.is_last_batch = last
        self._epoch_loop.automatic_optimization.optim_progress.optimizer.step.increment_completed()
        self._epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=False)

    def count_epoch(self, *, whole: bool) -> None:
        """Count an epoch as trained; schedulers that follow epochs advance where it was not cut off by the run's end."""
        self._fit_loop.epoch_progress.increment_processed()
        if whole:
            self._epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._epoch_loop.batch_progress.reset_on_run()
        self._epoch_loop.batch_progress.is_last_batch = False

    def forget_restart(self) -> None:
        """Training goes on: the rest of the present epoch is as any other (schedulers follow its end, for example)."""
        self._fit_loop._restarting = False

    def reopen_epoch(self) -> None:
        """After a resume from a fit that ended inside an epoch: the epoch is not over, though Lightning counted it."""
        progress = self._fit_loop.epoch_progress
        for tracker in (progress.total, progress.current):
            if tracker.processed == tracker.started:
                tracker.processed -= 1
                tracker.completed = tracker.processed
        self._fit_loop.restarting = True

    def go_on_at(self, micro_batch: int) -> bool:
        """After a resume inside an epoch: count so many of its micro-batches as taken.

        The checkpoint counts those of its own ranks and micro-batch size.

        Returns:
            Whether that is another number than the checkpoint's.
        """
        batches = self._epoch_loop.batch_progress
        moved = micro_batch - batches.current.ready
        for tracker in (batches.total, batches.current):
            for name in ("ready", "started", "processed", "completed"):  # the last may be one behind
                setattr(tracker, name, getattr(tracker, name) + moved)
        return bool(moved)

    def rewind(self, micro_batches: int) -> None:
        """Count the last micro-batches as not begun: their gradients are given up, and a resume takes them again."""
        batches = self._epoch_loop.batch_progress
        for tracker in (batches.total, batches.current):
            tracker.ready -= micro_batches
            tracker.started = tracker.processed = tracker.completed = tracker.ready
        batches.is_last_batch = False

    @contextmanager
    def rewound(self, micro_batches: int) -> Iterator[None]:
        """Within, the last micro-batches count as not begun."""
        batches = self._epoch_loop.batch_progress
        kept = copy.deepcopy(batches)
        self.rewind(micro_batches)
        try:
            yield
        finally:
            vars(batches).update(vars(kept))

    def begin_new_epoch_on_restart(self) -> None:
        """After a resume from a checkpoint at an epoch's last micro-batch: that epoch is over.

        Lightning compares the counts of the old epoch with the length of the loader that it has now, which another
        stage's is not.
        """
        if not self._fit_loop.restarting and not self._fit_loop._loaded_from_state_dict:
            return
        progress = self._fit_loop.epoch_progress
        for tracker in (progress.total, progress.current):
            tracker.ready = tracker.processed = tracker.completed = tracker.started
        batches = self._epoch_loop.batch_progress
        batches.total.started = batches.total.processed = batches.total.completed = batches.total.ready
        batches.reset_on_run()
        batches.is_last_batch = False
        self._epoch_loop._batches_that_stepped = self._epoch_loop.global_step  # the loggers' step
        _restart_off(self._fit_loop)

    def set_max_steps(self, steps: int) -> None:
        """Let training end after this many optimizer steps, and not for a number of epochs.

        Raises:
            ConfigurationError: where the user gave another ``max_steps``.
        """
        if self._trainer.fast_dev_run:
            return  # ends by itself after a few steps
        if self._trainer.max_steps not in (-1, steps):
            raise ConfigurationError(
                f"the stages take {steps} steps but trainer.max_steps is {self._trainer.max_steps}: leave max_steps out."
            )
        self._epoch_loop.max_steps = steps
        if self._fit_loop.max_epochs not in (None, -1, _UNLIMITED_EPOCHS):
            L.utilities.rank_zero_warn(
                f"trainer.max_epochs={self._fit_loop.max_epochs} is not used: training ends after the stages' {steps}"
                " steps. Leave max_epochs out, or write -1."
            )
        self._fit_loop.max_epochs = -1


def _restart_off(loop: Any) -> None:
    """Take the mark of a restart off a loop and its children, but not the memory that weights were loaded."""
    loop._restarting = False
    loop._loaded_from_state_dict = False
    for child in loop.__dict__.values():
        if hasattr(child, "_restarting"):
            _restart_off(child)
