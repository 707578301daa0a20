"""Counts optimizer steps in the training loop's place, by the same window and the same rates as in training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import lightning.pytorch as L
from torch.optim import Optimizer

from lightning_scale.callbacks import BatchSizeRamp, LEGWWarmup
from lightning_scale.errors import ConfigurationError
from lightning_scale.plan.micro_batch import BatchShapes, Unknown, read
from lightning_scale.plan.schedule import PlannedStep, Rules, Schedule, Warmup
from lightning_scale.window import LoopAdapter
from lightning_scale.window.mean_gradient import users_own
from lightning_scale.window.progress import epoch_steps


@dataclass(frozen=True)
class StageInput:
    """The data that a stage, or a run without stages, trains on."""

    stage: int | None
    """The stage's number, from 1; None without stages."""
    batch: BatchShapes | Unknown | None
    """The shapes of its micro-batches, or why they cannot be told; None where no samples were to be read."""
    samples_per_epoch: int | None
    """The samples of all ranks in an epoch; None where the loader does not say."""


class StepCounter(L.Callback):
    """A callback that counts optimizer steps in the training loop's place.

    Args:
        callbacks: The callbacks that decide about steps and rates.
        read_samples: Whether a few samples of each stage are read.
    """

    def __init__(self, callbacks: Sequence[L.Callback], read_samples: bool) -> None:
        self.optimizers: list[Optimizer] = []
        self.inputs: list[StageInput] = []
        self._callbacks, self._read_samples = callbacks, read_samples
        self._steps: list[PlannedStep] = []
        self._warmups: list[Warmup] = []
        self._epochs: float | None = 0.0
        self._samples_per_epoch: int | None = None
        self._last_size: tuple[int, int] | None = None
        self._world_size = 1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        adapter = LoopAdapter.attach(trainer)
        adapter.loop.run_instead(lambda: self._run(trainer, pl_module, adapter))

    def _run(self, trainer: L.Trainer, module: L.LightningModule, adapter: LoopAdapter) -> None:
        if not module.automatic_optimization:
            raise ConfigurationError(
                f"{type(module).__name__} sets automatic_optimization = False and steps its optimizer when it likes: there"
                " is nothing to plan."
            )
        self._world_size = trainer.world_size
        self.optimizers = [users_own(optimizer) for optimizer in trainer.optimizers]
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            warnings.warn(
                "ReduceLROnPlateau follows a metric, which nobody knows before: the plan's rates are those of a metric that"
                " always improves.",
                stacklevel=1,  # so that it counts as this package's own, which a dry run keeps
            )
        loop, steps = adapter.loop, 0
        loop.load()
        adapter.on_train_start(trainer, module)
        max_steps, max_epochs = loop.limits
        if max_steps == -1 and max_epochs == -1:
            raise ConfigurationError("nothing says where training ends: give trainer.max_steps or trainer.max_epochs.")
        while not _reached(trainer.global_step, max_steps) and not _reached(loop.epochs, max_epochs):
            loop.load()
            if math.isinf(loop.micro_batches_per_epoch):
                raise ConfigurationError(
                    "the training loader has no length, so nobody knows where its epochs end: give it one, or"
                    " trainer.limit_train_batches."
                )
            adapter.on_train_epoch_start(trainer, module)
            self._note_data(trainer, adapter)
            whole = self._epoch(trainer, adapter, max_steps)
            loop.count_epoch(whole=whole)
            if trainer.global_step == steps and max_epochs == -1:
                raise ConfigurationError("an epoch gives no optimizer step, so that training would never end.")
            steps = trainer.global_step

    def _note_data(self, trainer: L.Trainer, adapter: LoopAdapter) -> None:
        """Note what this epoch's loader says and the last one's may not have said: sizes, a stage, warmups."""
        feed, stages, rule = adapter.loader, adapter.stages, adapter.rate.rule
        if feed.micro_batch_size is None:
            raise ConfigurationError(
                "the training loader does not say how many samples a micro-batch has: use a torch DataLoader with"
                " batch_size, or a batch sampler with an attribute batch_size."
            )
        loaders = adapter.loop.train_loaders
        self._samples_per_epoch = feed.samples_per_epoch(loaders)
        number = stages.serving + 1 if stages is not None and stages.serving is not None else None
        if number not in [stage_input.stage for stage_input in self.inputs]:
            batch = read(loaders) if self._read_samples else None
            self.inputs.append(StageInput(number, batch, self._samples_per_epoch))
        if number in [warmup.stage for warmup in self._warmups]:
            return
        step = trainer.global_step
        length = stages.stage.steps if stages is not None else None
        warmup = rule.warmup_steps(step)
        if warmup:
            self._warmups.append(Warmup(number, step, float(warmup), length))
        schedule = feed.schedule()
        if schedule is not None and len(changes := schedule.changes()) > 1:
            start = adapter.progress.samples - adapter.progress.now  # of the stage
            self._last_size = (changes[-1][1], start + changes[-1][0])

    def _epoch(self, trainer: L.Trainer, adapter: LoopAdapter, max_steps: int) -> bool:
        """Count an epoch's steps, and return whether it comes to its end."""
        feed, loop, progress, stages = adapter.loader, adapter.loop, adapter.progress, adapter.stages
        epoch = feed.epoch(progress.now)
        last_window = feed.owner.last_window if feed.owner is not None else "step"
        left = epoch.micro_batches
        for taken in epoch_steps(epoch, last_window):
            if not taken.steps:  # left out, though consumed
                progress.add(taken.samples)
            for _ in range(taken.steps):
                left -= taken.micro_batches
                adapter.write_rate(trainer)
                length = stages.stage.sequence_length if stages is not None else None
                self._count(taken.samples)
                size = -(-taken.batch.batch_size // (self._world_size * taken.batch.micro_batches))
                lr = float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else 0.0
                number = stages.serving + 1 if stages is not None and stages.serving is not None else None
                ends = stages is not None and stages.ends_after(trainer.global_step + 1)
                loop.count_step(taken.micro_batches, last=left <= 0 or ends)
                progress.add(taken.samples)
                self._steps.append(
                    PlannedStep(
                        trainer.global_step,
                        progress.samples,
                        progress.tokens if length is not None else None,
                        taken.samples,
                        taken.micro_batches,
                        min(size, -(-taken.samples // self._world_size)),
                        length,
                        lr,
                        number,
                        loop.epochs + 1,
                    )
                )
                if ends or _reached(trainer.global_step, max_steps):
                    return ends or left <= 0
        return True

    def _count(self, samples: int) -> None:
        known = self._samples_per_epoch
        self._epochs = None if self._epochs is None or not known else self._epochs + samples / known

    def schedule(self, notes: tuple[str, ...]) -> Schedule:
        """Return the steps that were counted; ``notes`` are warnings of the command."""
        if not self._steps:
            raise ConfigurationError(
                "training would end before its first optimizer step: give it data, steps or epochs."
            )
        rule = next((callback.rule for callback in self._callbacks if isinstance(callback, LEGWWarmup)), None)
        ramp = next((callback for callback in self._callbacks if isinstance(callback, BatchSizeRamp)), None)
        follows = rule.lr_scaling if rule is not None else ramp.lr_scaling if ramp is not None else "none"
        rules = Rules(
            self._world_size,
            self._samples_per_epoch,
            rule.base_batch_size if rule is not None else None,
            follows,
            self._last_size,
            tuple(self._warmups),
            notes,
        )
        return Schedule(self._steps, rules, self._epochs)


def _reached(count: int, limit: int) -> bool:
    return limit != -1 and count >= limit
