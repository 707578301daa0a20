"""The training loader: which samples it gives the next optimizer step, and what happens whenever it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset

from lightning_scale.data import ResumableBatchSampler, is_resumable, ranks
from lightning_scale.errors import ConfigurationError
from lightning_scale.lightning_internals import LoopAccess, LoopState
from lightning_scale.schedule import BatchSizeSchedule, Split, StagePlan, nearest_multiple, nearest_split
from lightning_scale.window.conflicts import (
    refuse_batch_beyond_epoch,
    refuse_impossible_sizes,
    refuse_uneven_ranks,
    refuse_unknown_samples,
    warn_of_loaders_that_cannot_continue,
)
from lightning_scale.window.mean_gradient import samples_of, sum_over_ranks
from lightning_scale.window.progress import Epoch, Progress, count_steps, samples_per_epoch
from lightning_scale.window.random_streams import RandomStreams
from lightning_scale.window.window import BatchSizeOwner, Window


class TrainingLoader:
    """The training loader's side of the window: how large batches can be, and how they are made of micro-batches.

    A loader with a `ResumableBatchSampler` is told the batch sizes and gives each of them exactly. Any other loader gives
    full micro-batches: of it, sizes of a schedule are rounded to the nearest multiple of micro-batch × ranks (of two the
    larger).

    Args:
        trainer: The Trainer, in ``fit``.
        loop: The counts of its training loop.
    """

    def __init__(self, trainer: L.Trainer, loop: LoopState) -> None:
        self.owner: BatchSizeOwner | None = None
        self.owner_name = ""
        self.micro_batch_size: int | None = None
        """Samples in one rank's micro-batch, at most; None where the loader does not say."""
        self.resumable = False
        """Whether the loader's order follows from the samples consumed."""
        self._trainer = trainer
        self._loop = loop
        self._sampler: ResumableBatchSampler | None = None  # where it is told the batch sizes
        self._ranks_alike = True
        self._drawn: int | None = None  # samples of an epoch on this rank, where torch's own batch sampler cuts them up

    @property
    def exact(self) -> bool:
        """Whether the loader gives batches of any size exactly."""
        return self._sampler is not None

    @property
    def _unit(self) -> int | None:
        """Samples in one full micro-batch of every rank."""
        return self.micro_batch_size * ranks.world_size() if self.micro_batch_size is not None else None

    def schedule(self) -> BatchSizeSchedule | None:
        """The batch sizes that are asked for now, where somebody asks."""
        return self.owner.schedule(self._trainer.global_step) if self.owner is not None else None

    # -- what the loader is told, and tells ----------------------------------------------------------------------------

    def follow(self, loader: Any, samples: int, epoch_start: int) -> bool:
        """Tell a resumable loader where the run is, and which batches it is asked for; False for another loader."""
        if not is_resumable(loader):
            return False
        last_window = self.owner.last_window if self.owner is not None else "drop"
        loader.batch_sampler.follow(
            samples_consumed=samples, epoch_start=epoch_start, schedule=self.schedule(), last_window=last_window
        )
        return True

    def read(self, loaders: list[Any], wanted: int | None) -> None:
        """Learn the micro-batch size of the loaders; ``wanted`` is what a stage asks for.

        Raises:
            ConfigurationError: where it is another, or no batch size can be made of it.
        """
        sampler: Any = getattr(loaders[0], "batch_sampler", None)
        size = getattr(sampler, "batch_size", None)
        self.micro_batch_size = size if size is not None else getattr(loaders[0], "batch_size", None)
        given = getattr(self.owner, "micro_batch_size", None)
        if self.micro_batch_size is None:
            self.micro_batch_size = wanted if wanted is not None else given
        if wanted is not None and self.micro_batch_size != wanted:
            raise ConfigurationError(
                f"the stage's micro_batch_size is {wanted} but the training loader's batch size is"
                f" {self.micro_batch_size}: build the loader with the micro_batch_size that set_stage is given."
            )
        if given is not None and self.micro_batch_size != given:
            raise ConfigurationError(
                f"{self.owner_name}'s micro_batch_size is {given} but the training loader's batch size is"
                f" {self.micro_batch_size}: leave micro_batch_size out, it is for loaders that do not say theirs."
            )
        resumable = is_resumable(loaders[0])
        if resumable and sampler.world_size != ranks.world_size():
            raise ConfigurationError(
                f"the ResumableBatchSampler was made for {sampler.world_size} ranks and there are"
                f" {ranks.world_size()}: leave its rank and world_size out."
            )
        if self.owner is not None and len(loaders) > 1 and any(map(is_resumable, loaders)):
            raise ConfigurationError(
                f"{self.owner_name} and several training loaders with a ResumableBatchSampler: each would split the batch by"
                " itself. Put the data sets into one (torch.utils.data.StackDataset, say), with one loader."
            )
        if resumable and self._trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ConfigurationError(
                "overfit_batches repeats the same batches, and a ResumableBatchSampler goes on in its order: use"
                " limit_train_batches, or a plain DataLoader."
            )
        self.resumable = resumable
        self._sampler = sampler if resumable and self.owner is not None else None
        # Of an iterable data set nobody knows them: each worker ends with a short micro-batch of its own.
        iterable = isinstance(getattr(loaders[0], "dataset", None), IterableDataset)
        cut = type(sampler) is BatchSampler and len(loaders) == 1 and not iterable
        self._drawn = len(sampler.sampler) if cut and hasattr(sampler.sampler, "__len__") else None
        # Lightning's distributed samplers give every rank as many samples; who knows what others do.
        alike = resumable or isinstance(getattr(loaders[0], "sampler", None), DistributedSampler)
        self._ranks_alike = alike or ranks.world_size() == 1
        if self.owner is not None:
            self._check_batches(self.owner)

    def _check_batches(self, owner: BatchSizeOwner) -> None:
        """Refuse batch sizes that the loader cannot give."""
        unit = self._unit
        if unit is None or self.micro_batch_size is None:
            raise ConfigurationError(
                f"{self.owner_name} cannot see the training loader's batch size: use a torch DataLoader with batch_size, or a"
                " batch sampler with an attribute batch_size. Where the loader gives whole batches (batch_size=None), write how"
                f" many samples one of them has: {self.owner_name}(micro_batch_size=...)."
            )
        schedule = owner.schedule(self._trainer.global_step)
        refuse_impossible_sizes(
            schedule,
            self.owner_name,
            self.micro_batch_size,
            ranks.world_size(),
            exact=self.exact,
            possible=self._possible,
        )
        epoch = self._sampler.epoch_samples if self._sampler is not None else self._loop.micro_batches_per_epoch * unit
        refuse_batch_beyond_epoch(max(self._possible(size) for _, size in schedule.changes()), epoch, owner.last_window)

    def samples_per_epoch(self, loaders: list[Any], trained: bool = False) -> int | None:
        """Samples in one pass over the data (``trained``: until training begins a new epoch), or what
        ``limit_train_batches`` leaves of them; None where nobody knows."""
        # Of several loaders the longest, or the shortest, ends Lightning's epoch.
        limited = self._trainer.limit_train_batches != 1.0 or len(loaders) > 1
        micro_batches = self._loop.micro_batches_per_epoch if limited else math.inf
        return samples_per_epoch(loaders, micro_batches, self._unit, trained)

    def samples_of_run(self, loaders: list[Any]) -> int | None:
        """Samples of the whole run, where it has no stages; None where nobody knows."""
        limits, steps, epochs = [], self._trainer.max_steps, self._trainer.max_epochs
        schedule, unit = self.schedule(), self._unit
        if steps != -1 and schedule is not None:
            limits.append(schedule.samples_after(steps))
        elif steps != -1 and unit is not None:
            limits.append(steps * unit * self._trainer.accumulate_grad_batches)
        epoch = self.samples_per_epoch(loaders, trained=True)
        if epoch is not None and epochs is not None and epochs > 0:
            limits.append(epochs * epoch)
        return min(limits, default=None)

    # -- batches -------------------------------------------------------------------------------------------------------

    def _possible(self, batch_size: int) -> int:
        """The nearest size that the loader can make."""
        assert self.micro_batch_size is not None and self._unit is not None, "checked when the loader was read"
        if self.exact:
            return nearest_split(batch_size, self.micro_batch_size, ranks.world_size()).batch_size
        return nearest_multiple(batch_size, self._unit)

    def _micro_batches_of(self, batch_size: int, micro_batch_size: int) -> int:
        """Micro-batches of each rank in the nearest batch that the loader can make."""
        world_size = ranks.world_size()
        if self.exact:
            return nearest_split(batch_size, micro_batch_size, world_size).micro_batches
        unit = micro_batch_size * world_size
        return nearest_multiple(batch_size, unit) // unit

    def micro_batches(self, samples: int) -> int:
        """Micro-batches of each rank in the step that comes after ``samples`` consumed ones."""
        schedule = self.schedule()
        assert schedule is not None and self.micro_batch_size is not None, "checked when the loader was read"
        return self._micro_batches_of(schedule.batch_size(samples), self.micro_batch_size)

    def micro_batches_a_step(self, plan: StagePlan | None) -> int | None:
        """Micro-batches of each rank in every step but perhaps an epoch's last; None where that is no one number."""
        if self.owner is None:
            changes = any(isinstance(c, GradientAccumulationScheduler) for c in self._trainer.callbacks)  # type: ignore[attr-defined]
            return None if changes else self._trainer.accumulate_grad_batches
        known = [(self.micro_batch_size, self.owner.schedule(self._trainer.global_step))]
        if plan is not None:
            known = [(stage.micro_batch_size, stage.schedule) for stage in plan.stages]
        counts = {
            self._micro_batches_of(size, micro) if micro is not None else None
            for micro, schedule in known
            for _, size in schedule.changes()
        }
        return counts.pop() if len(counts) == 1 else None

    def batch_size(self, samples: int) -> int | None:
        """Samples of the next optimizer step over all ranks, before an epoch's end cuts it; None where nobody knows."""
        schedule = self.schedule()
        if schedule is not None:
            return self._possible(schedule.batch_size(samples))
        return self._unit * self._trainer.accumulate_grad_batches if self._unit is not None else None

    def window(self, samples: int) -> Window:
        """The window that opens after ``samples`` consumed ones."""
        batch_size = self.batch_size(samples)
        if self.owner is None or batch_size is None:
            return Window(batch_size or 0, self._trainer.accumulate_grad_batches)
        if self._sampler is not None:
            split = self._sampler.batch(samples)
            assert split is not None, "the loader gave a micro-batch beyond its epoch's end"
            return Window(split.batch_size, split.micro_batches, split)
        assert self._unit is not None
        return Window(batch_size, batch_size // self._unit)

    def micro_batches_taken(self, samples: int, epoch_start: int) -> int:
        """Micro-batches of each rank, in the epoch that began after ``epoch_start``, that hold its samples so far."""
        assert self._sampler is not None, "only where the loader is told the batch sizes"
        taken, left = 0, samples - epoch_start
        for batch, count in self._sampler.epoch_batches(epoch_start):
            whole = min(count, left // batch.batch_size)
            taken, left = taken + whole * batch.micro_batches, left - whole * batch.batch_size
            if whole < count:
                break
        return taken

    def begin_micro_batch(self, window: Window, batch: Any) -> None:
        """Count the window's next micro-batch."""
        nominal = self.micro_batch_size
        asked = None
        if window.split is not None:
            asked = window.split.size(window.seen, ranks.rank())
        elif self._drawn is not None and nominal is not None:
            left = self._drawn - self._loop.micro_batch * nominal
            asked = min(nominal, left) if left > 0 else None
        held = samples_of(batch, nominal if asked is None else asked)
        window.begin_micro_batch(held if asked is None else asked, held)

    def consumed(self, window: Window) -> int:
        """Samples of all ranks in the micro-batches of a window that ends; every rank calls it, and gets the same."""
        if window.split is not None:
            return window.split.samples(window.seen)
        if self._ranks_alike:
            return window.samples * ranks.world_size()
        own = torch.tensor(window.samples, device=self._trainer.strategy.root_device)
        return int(sum_over_ranks(own, self._trainer)) * ranks.world_size() // self._trainer.world_size

    # -- how many there will be ----------------------------------------------------------------------------------------

    def steps(self, epochs: int) -> int:
        """Optimizer steps of a run of so many epochs, from its first sample on; its loader's length must be known."""
        assert self.owner is not None
        fixed_from = self.owner.schedule(0).changes()[-1][0]  # where the last size begins
        return count_steps(epochs, self.epoch, self.owner.last_window, fixed_from)

    def epoch(self, samples: int) -> Epoch:
        """The epoch that begins after so many samples; its loader's length must be known."""
        if self._sampler is None:
            loaders, world_size = self._loop.train_loaders, ranks.world_size()
            held = samples_per_epoch(loaders, math.inf, None) if len(loaders) == 1 else None
            padded = None if held is None else -(-held // world_size) * world_size  # as distributed samplers do
            micro_batches = int(self._loop.micro_batches_per_epoch)
            return Epoch(self._endless(samples, micro_batches), micro_batches, padded)
        batches = list(self._sampler.epoch_batches(samples))
        return Epoch(batches, self._loop.limited(sum(count * batch.micro_batches for batch, count in batches)))

    def _endless(self, samples: int, enough: int) -> Iterator[tuple[Split, int]]:
        """Batches of full micro-batches, each kind with how many of it follow; ``enough`` of one that lasts."""
        schedule, unit = self.schedule(), self._unit
        assert unit is not None, "checked when the loader was read, or before a plan"
        while True:
            batch_size = self.batch_size(samples)
            assert batch_size is not None
            count = (schedule.steps_of_one_size(samples, batch_size) if schedule is not None else None) or enough
            yield Split(batch_size, batch_size // unit, ranks.world_size()), count
            samples += count * batch_size


class LoaderHooks:
    """Whenever Lightning's loop makes sure of its loaders, lets stages begin and resumed runs go on where they were.

    Args:
        trainer: The Trainer, in ``fit``.
        loop: Its training loop.
        loader: The training loader's side of the window.
        progress: What has been consumed, and the stages.
        data_known: Called with the samples of an epoch and of the run (None where unknown) for new loaders.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        loop: LoopAccess,
        loader: TrainingLoader,
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
        """Whether a resumed run goes on where there is no validation, though Lightning's counts may say so."""
        self._trainer, self._loop, self._loader, self._progress = trainer, loop, loader, progress
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
        if self._resuming and self._loader.resumable:
            if self._loop.last_batch_done:
                self._loop.begin_new_epoch_on_restart()
            elif self._loader.exact and self._loop.restored and self._loop.epoch_begun:
                taken = self._loader.micro_batches_taken(self._progress.now, self._progress.epoch_start)
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
        stages.enter(step, early=self.restored and step == 0)

    def begin_epoch(self) -> None:
        """An epoch begins: its loaders go on at the samples consumed."""
        self._progress.epoch_start = self._progress.now
        for loader in self._loop.train_loaders:
            self._loader.follow(loader, self._progress.now, self._progress.epoch_start)
        if self._loader.exact:
            self._loop.measure_epoch()

    def _read_loaders(self, loaders: list[Any]) -> None:
        """New loaders: their micro-batch must be one that the batch size can be made of."""
        loader, stages = self._loader, self._progress.stages
        if self._resuming and not self.restored and self._trainer.ckpt_path is not None:
            refuse_unknown_samples(loaders, loader.schedule())
        loader.read(loaders, stages.stage.micro_batch_size if stages is not None else None)
        if torch.distributed.is_initialized() and self._trainer.world_size > 1:  # a plan has no other ranks
            lengths: list[Any] = [None] * self._trainer.world_size
            torch.distributed.all_gather_object(lengths, self._loop.micro_batches_per_epoch)
            refuse_uneven_ranks(lengths)
        resuming = self._resuming and self._loop.epoch_begun
        warn_of_loaders_that_cannot_continue(loaders, resuming=resuming, exact=self.streams is not None)
        self._data_known(loader.samples_per_epoch(loaders), loader.samples_of_run(loaders))

    def _take_resumable_sampler(self, loader: Any) -> bool:
        """Whether a loader's order follows from the samples consumed; a training loader is told how many those are."""
        if self._loading:
            return self._loader.follow(loader, self._progress.now, self._progress.epoch_start)
        return is_resumable(loader)

    def _iterate(self, iterate: Callable[[], None]) -> None:
        """Make an epoch's iterators: from the training stream, unless a resumed run made them once before."""
        if self.streams is None or self._loop.epoch_begun:
            iterate()
        else:
            self.streams.begin_epoch(iterate)
