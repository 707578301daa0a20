"""The scaled learning rate of one fit: what it is at each step, and the one writer that sets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.schedule import LEGW, BatchSizeSchedule, Rate, StagePlan, compose_rate, warmup_of


@dataclass
class RateRule:
    """Rates as a pure function of progress, once the data is known.

    Args:
        legw: LEGW's rule, or None.
        plan: The stages, or None.
        ramps: Whether a batch-size ramp has a say.
        batch_factor: Its factor for the rate, by the batch size, or None where the rate does not follow the batch.
    """

    legw: LEGW | None = None
    plan: StagePlan | None = None
    ramps: bool = False
    batch_factor: Callable[[int], float] | None = None
    _legw_steps: Fraction | None = None
    _stage_warmup: Fraction | None = None

    @property
    def sources(self) -> list[str]:
        """The callbacks that scale the rate."""
        parts = {"LEGWWarmup": self.legw, "SequenceLengthStages": self.plan, "BatchSizeRamp": self.ramps or None}
        return [name for name, part in parts.items() if part is not None]

    def know_data(self, step: int, samples_per_epoch: int | None, total_samples: int | None) -> None:
        """Turn warmups given in epochs, samples or shares into optimizer steps.

        Args:
            step: Optimizer steps attempted so far (they tell the stage).
            samples_per_epoch: Of the data at hand; None where unknown.
            total_samples: Of the whole run, where there are no stages; None where unknown.

        Raises:
            ConfigurationError: where a warmup needs what is unknown, or is longer than its stage.
        """
        stage = self.plan.at(step).stage if self.plan is not None else None
        try:
            if stage is not None:
                self._stage_warmup = stage.warmup_steps(samples_per_epoch=samples_per_epoch)
            if self.legw is not None and (stage is None or stage.lr is None):
                self._legw_steps = self.legw.warmup_steps(
                    samples_per_epoch=samples_per_epoch,
                    total_samples=total_samples if stage is None else stage.total_samples,
                    tokens_per_sample=stage.sequence_length if stage is not None else None,
                )
        except ValueError as error:
            if samples_per_epoch is None and "samples_per_epoch" in str(error):
                raise ConfigurationError(
                    "a warmup is given in epochs, and the training loader does not say how many samples an epoch has:"
                    " write it in steps or samples."
                ) from None
            raise ConfigurationError(str(error)) from None

    def warmup_steps(self, step: int) -> Fraction | float:
        """Optimizer steps of the warmup after ``step`` steps: the run's, or that of the stage; 0 for none."""
        stage = self.plan.at(step).stage if self.plan is not None else None
        return warmup_of(stage, self._stage_warmup, self._legw_steps)

    def rate(self, step: int, samples: int, batch_size: int | None, schedule: BatchSizeSchedule | None) -> Rate:
        """The rate of an optimizer step.

        Args:
            step: Optimizer steps attempted before it.
            samples: Samples consumed before it, since the stage began where there are stages.
            batch_size: Samples that it is asked to take, over all ranks.
            schedule: Where that comes from, if anywhere.

        Raises:
            ConfigurationError: where LEGW needs the batch size and nobody knows it.
        """
        if self.legw is not None and batch_size is None:
            raise ConfigurationError(
                "LEGWWarmup cannot see the batch size: use a torch DataLoader with batch_size, or add"
                " GradientAccumulation(batch_size=...)."
            )
        return compose_rate(
            step=step + 1,
            batch_size=batch_size or 1,
            plan=self.plan,
            legw=self.legw,
            legw_warmup_steps=self._legw_steps,
            stage_warmup_steps=self._stage_warmup,
            ramp_factor=self.batch_factor(batch_size) if self.batch_factor is not None and batch_size else 1.0,
            decay_factor=schedule.lr_factor(samples) if schedule is not None else 1.0,
        )


class RateControl:
    """Scales an optimizer's groups from their bases, which are what the user's optimizer, schedulers and callbacks say.

    Groups hold their bases, and base × factor only between `write` and `release`, while a step is computed. So schedulers,
    checkpoints and whoever sets rates compose by themselves. What is written between the two is taken for what can be read
    there: a rate with the factor in it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._base: list[float | Tensor] = []
        self._written: list[float | Tensor] = []
        self._versions: list[int] = []
        self._rate: Rate | None = None  # while groups are scaled
        self._last: Rate | None = None
        # A stage's absolute rate is that of a group at the optimizer's default; other groups keep their proportion.
        # Taken from the configuration, before a checkpoint brings the rates of another one.
        self._default = float(optimizer.defaults.get("lr") or 0.0)
        self._proportion = [self._proportion_of(group["lr"]) for group in optimizer.param_groups]

    def _proportion_of(self, lr: float | Tensor) -> float:
        return float(lr) / self._default if self._default else 1.0

    def write(self, rate: Rate) -> None:
        """Set every group's rate for the next optimizer step."""
        self.release()
        groups = self._optimizer.param_groups
        self._base = [_copy(group["lr"]) for group in groups]
        self._proportion += [self._proportion_of(group["lr"]) for group in groups[len(self._proportion) :]]
        for group, base, proportion in zip(groups, self._base, self._proportion, strict=True):
            _set(group, (base if rate.absolute is None else rate.absolute * proportion) * rate.factor)
        self._written = [group["lr"] for group in groups]
        self._versions = [_version(lr) for lr in self._written]
        self._rate = self._last = rate

    @property
    def scaled(self) -> bool:
        """Whether groups hold the rates of a step now."""
        return self._rate is not None

    def write_again(self) -> None:
        """Set the last step's factor once more."""
        if self._last is not None:
            self.write(self._last)

    def numbers(self) -> list[float]:
        """The groups' rates as they stand, without those that are tensors, whose device is not asked."""
        return [group["lr"] for group in self._optimizer.param_groups if not isinstance(group["lr"], Tensor)]

    @property
    def first(self) -> float | Tensor:
        """The first group's rate as it stands (a copy)."""
        return _copy(self._optimizer.param_groups[0]["lr"])

    def release(self) -> None:
        """Set every group's rate to its base, which follows what others have written since `write`."""
        rate, self._rate = self._rate, None
        if rate is None:
            return
        groups = self._optimizer.param_groups
        for i, group in enumerate(groups[: len(self._base)]):
            if _is_as_written(group["lr"], self._written[i], self._versions[i]):
                _set(group, self._base[i])
            else:
                self._take(i, group, rate)
        for group in groups[len(self._base) :]:
            # One that was added with the optimizer's default brings its base, any other one a rate that was read here.
            lr, peak = group["lr"], rate.absolute or 1.0
            base = lr if not isinstance(lr, Tensor) and lr == self._default else lr / (peak * rate.factor or 1.0)
            if rate.absolute is None:
                _set(group, base)
            else:
                self._proportion.append(1.0 if base is lr else float(base))

    def _take(self, i: int, group: dict[str, Any], rate: Rate) -> None:
        """A rate that somebody has written while the factor was in force: it holds, and so do later factors' proportions."""
        now, factor = group["lr"], rate.factor
        rank_zero_warn(
            f"a learning rate was set to {float(now):g} inside of a step, where lightning_scale's callbacks have multiplied rates"
            f" by {factor:g}: it is taken as the rate with that factor in it. To have what you set multiplied, set it in"
            " on_train_batch_start or on_train_epoch_start, or by a torch scheduler."
        )
        if rate.absolute is not None:
            self._proportion[i] = float(now) / ((rate.absolute * factor) or 1.0)
            _set(group, self._base[i])
        elif factor:
            _set(group, now / factor)

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        """Within, groups hold their base; what is there at the end is the new base."""
        rate = self._rate
        self.release()
        try:
            yield
        finally:
            if rate is not None:
                self.write(rate)


class ScaledRate:
    """Sets the optimizer's rates by a rule, between `begin` and `end`; nothing where the rule has nothing to say."""

    def __init__(self) -> None:
        self.rule = RateRule()
        self.last: float | Tensor = 0.0
        """The first parameter group's rate in the last step."""
        self._prepared: RateControl | None = None
        self._control: RateControl | None = None  # while training

    def prepare(self, optimizer: Optimizer) -> None:
        """Before a checkpoint brings other rates."""
        self._prepared = RateControl(optimizer)

    def begin(self) -> None:
        """Training begins, from the rates that the optimizer has now."""
        self._control = self._prepared

    def write(self, step: int, samples: int, batch_size: int | None, schedule: BatchSizeSchedule | None) -> None:
        """Set the rate of the optimizer step after ``step``; see `RateRule.rate`."""
        if self._control is not None:
            self._control.write(self.rule.rate(step, samples, batch_size, schedule))

    @property
    def scaled(self) -> bool:
        """Whether groups hold the rates of a step now."""
        return self._control is not None and self._control.scaled

    def write_again(self) -> None:
        """Set the rate of the last step."""
        if self._control is not None:
            self._control.write_again()

    def release(self, *, stepped: bool = False) -> None:
        """Give the user's own rates back until the next `write`; ``stepped``: remember the rate of the step before."""
        if self._control is not None:
            if stepped:
                self.last = self._control.first
            self._control.release()

    def unscaled(self) -> AbstractContextManager[None]:
        """Within, the optimizer has the user's own rates."""
        return self._control.unscaled() if self._control is not None else nullcontext()

    def update_schedulers(self, update: Callable[[], None], warming: bool) -> None:
        """Run an update of torch schedulers on the user's own rates; ``warming``: while a warmup of the rule's lasts."""
        if self._control is None:
            return update()
        with self._control.unscaled():
            before = self._control.numbers()
            update()
            if warming and any(b < now for b, now in zip(before, self._control.numbers(), strict=True)):
                rank_zero_warn(
                    f"a learning-rate scheduler raises the rate while {' and '.join(self.rule.sources)} warms it up, and the"
                    " two multiply: leave the scheduler's own warmup out, or write base_warmup: 0 steps."
                )

    def end(self) -> None:
        """Give the user's own rates back."""
        self.release()
        self._control = None


def _copy(lr: float | Tensor) -> float | Tensor:
    return lr.detach().clone() if isinstance(lr, Tensor) else float(lr)


def _set(group: dict[str, Any], value: float | Tensor) -> None:
    """Write into a tensor in place (a compiled or captured step reads it), else replace the number."""
    if not isinstance(group["lr"], Tensor):
        group["lr"] = float(value)
    elif isinstance(value, Tensor):
        group["lr"].copy_(value)
    else:
        with torch.no_grad():
            group["lr"].fill_(value)


def _version(lr: float | Tensor) -> int:
    return lr._version if isinstance(lr, Tensor) else 0


def _is_as_written(now: float | Tensor, written: float | Tensor, version: int) -> bool:
    """Whether nobody has set a rate since. A tensor counts what is written into it, so that its device is not asked."""
    if isinstance(now, Tensor) or isinstance(written, Tensor):
        return now is written and _version(now) == version
    return now == written
