"""What happens whenever Lightning's loop makes sure of its loaders: stages begin, resumed runs find their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L

from lightning_scale.data import is_resumable
from lightning_scale.lightning_internals import LoopAccess
from lightning_scale.window.conflicts import refuse_unknown_samples, warn_of_loaders_that_cannot_continue
from lightning_scale.window.feed import Feed
from lightning_scale.window.progress import Progress
from lightning_scale.window.random_streams import RandomStreams


class DataFollower:
    """Keeps loaders, stages and progress together, for one fit.

    Args:
        trainer: The Trainer.
        loop: Its loop.
        feed: The training loader's side of the window.
        progress: What has been consumed.
        data_known: Called with the samples of an epoch and of the run (None where unknown) for new loaders.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        loop: LoopAccess,
        feed: Feed,
        progress: Progress,
        data_known: Callable[[int | None, int | None], None],
    ) -> None:
        self.streams: RandomStreams | None = None
        """Where training steps draw their random numbers, if apart."""
        self.trained = False
        """Whether training has begun."""
        self.restored = False
        """Whether a checkpoint held the progress."""
        self.no_validation_due = False
        """At the place where a resumed run goes on, though Lightning's counts may say so."""
        self._trainer, self._loop, self._feed, self._progress = trainer, loop, feed, progress
        self._data_known = data_known
        self._loading = False
        self._read: list[Any] = []  # the loaders last read
        # Already now: configure_optimizers may ask for the loaders, to count steps.
        loop.leave_sampler_alone(self._take_resumable_sampler)
        loop.around_epoch_iterators(self._iterate)
        loop.around_loading_data(self._before, self._after)

    @property
    def _resuming(self) -> bool:
        """Whether training goes on from a checkpoint and has not begun yet."""
        return self._trainer.global_step > 0 and not self.trained

    def _before(self) -> None:
        """Before the loop makes sure of its training loaders."""
        self._loading = True
        if self._resuming:
            if self._loop.train_loaders:
                self._loop.drop_loaders()  # made before the checkpoint was restored, for a count of steps
            if self._loop.last_batch_done:
                self._progress.epoch_start = self._progress.now
            elif self._loop.restored and self._loop.epoch_begun:
                self._loop.reopen_epoch()
        self.enter_stage()

    def _after(self) -> None:
        self._loading = False
        loaders = self._loop.train_loaders
        if not loaders:
            return
        if loaders != self._read:
            self._read = loaders
            self._read_loaders(loaders)
        if self._resuming and self._feed.resumable:
            if self._loop.last_batch_done:
                self._loop.begin_new_epoch_on_restart()
            elif self._feed.exact and self._loop.restored and self._loop.epoch_begun:
                taken = self._feed.micro_batches_taken(self._progress.now, self._progress.epoch_start)
                self.no_validation_due |= self._loop.go_on_at(taken)

    def enter_stage(self) -> None:
        """Tell the data of a new stage, if one begins or is resumed, and have its loaders made anew."""
        stages, step = self._progress.stages, self._trainer.global_step
        if stages is None or not stages.changes_at(step):
            return
        self._read = []  # even where the data serves the same loader again
        if stages.serving is not None:
            self._loop.drop_loaders()
        if stages.plan.at(step).step == 0 and step > 0:
            self._loop.begin_new_epoch_on_restart()
        stages.enter(step)

    def begin_epoch(self) -> None:
        """An epoch begins: its loaders go on at the samples consumed."""
        self._progress.epoch_start = self._progress.now
        for loader in self._loop.train_loaders:
            self._feed.follow(loader, self._progress.now, self._progress.epoch_start)
        if self._feed.exact:
            self._loop.measure_epoch()

    def _read_loaders(self, loaders: list[Any]) -> None:
        """New loaders: their micro-batch must be one that the batch size can be made of."""
        feed, stages = self._feed, self._progress.stages
        if self._resuming and not self.restored and self._trainer.ckpt_path is not None:
            refuse_unknown_samples(loaders, feed.schedule())
        feed.read(loaders, stages.stage.micro_batch_size if stages is not None else None)
        resuming = self._resuming and self._loop.epoch_begun
        warn_of_loaders_that_cannot_continue(loaders, resuming=resuming, exact=self.streams is not None)
        self._data_known(feed.samples_per_epoch(loaders), feed.samples_of_run(loaders))

    def _take_resumable_sampler(self, loader: Any) -> bool:
        """Whether a loader's order follows from the samples consumed; a training loader is told how many those are."""
        if self._loading:
            return self._feed.follow(loader, self._progress.now, self._progress.epoch_start)
        return is_resumable(loader)

    def _iterate(self, iterate: Callable[[], None]) -> None:
        """Make an epoch's iterators: from the training stream, unless a resumed run made them once before."""
        if self.streams is None or self._loop.epoch_begun:
            iterate()
        else:
            self.streams.begin_epoch(iterate)
