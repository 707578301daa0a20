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
    """Keeps an optimizer's groups at base × factor, where base is what the user's optimizer or scheduler says.

    Schedulers and checkpoints see the base only (`unscaled`), so that a scheduler that computes the next rate from the
    present one does not compound the factor, and a resumed run starts from the same bits.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._base: list[float | Tensor] = []
        self._written: list[float | None] = []
        self._rate = Rate(absolute=None, factor=1.0)
        # A stage's absolute rate is that of a group at the optimizer's default; other groups keep their proportion.
        # Taken from the configuration, before a checkpoint brings the rates of another one.
        self._default = float(optimizer.defaults.get("lr") or 0.0)
        self._proportion = [self._proportion_of(group) for group in optimizer.param_groups]

    def _proportion_of(self, group: dict[str, Any]) -> float:
        return float(group["lr"]) / self._default if self._default else 1.0

    def take_base(self) -> None:
        """Read every group's base, after a checkpoint has been restored and before the first `write`."""
        self._base = [_copy(group["lr"]) for group in self._optimizer.param_groups]
        self._written = [None] * len(self._base)

    def _adopt_new_groups(self) -> None:
        """Groups added during training come with their base."""
        for group in self._optimizer.param_groups[len(self._base) :]:
            self._base.append(_copy(group["lr"]))
            self._written.append(None)
        for group in self._optimizer.param_groups[len(self._proportion) :]:
            self._proportion.append(self._proportion_of(group))

    def write(self, rate: Rate) -> None:
        """Set every group's rate for the next optimizer step."""
        self._adopt_new_groups()
        self._rate = rate
        for i, group in enumerate(self._optimizer.param_groups):
            peak = self._base[i] if rate.absolute is None else rate.absolute * self._proportion[i]
            value = peak * rate.factor
            _set(group, value)
            self._written[i] = None if isinstance(value, Tensor) else float(value)

    @property
    def first(self) -> float | Tensor:
        """The first group's rate as it stands (a copy)."""
        return _copy(self._optimizer.param_groups[0]["lr"])

    def restore(self) -> None:
        """Set every group's rate to its base."""
        self._adopt_new_groups()
        for group, base, written in zip(self._optimizer.param_groups, self._base, self._written, strict=True):
            now = group["lr"]
            if written is not None and not isinstance(now, Tensor) and now != written:
                rank_zero_warn(
                    f"the learning rate was set to {now} by something else than lightning_scale's callbacks, which set"
                    f" it to {written}: the change is undone. Change the optimizer's lr, or use a torch scheduler."
                )
            _set(group, base)

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        """Within, groups hold their base; what is there at the end becomes the new base."""
        self.restore()
        try:
            yield
        finally:
            self._base = [_copy(group["lr"]) for group in self._optimizer.param_groups]
            self.write(self._rate)


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
        if self._prepared is not None:
            self._prepared.take_base()
            self._control = self._prepared

    def write(self, step: int, samples: int, batch_size: int | None, schedule: BatchSizeSchedule | None) -> None:
        """Set the rate of the optimizer step after ``step``; see `RateRule.rate`."""
        if self._control is not None:
            self._control.write(self.rule.rate(step, samples, batch_size, schedule))

    def note(self) -> None:
        """The optimizer is about to step: remember its rate."""
        if self._control is not None:
            self.last = self._control.first

    def unscaled(self) -> AbstractContextManager[None]:
        """Within, the optimizer has the user's own rates."""
        return self._control.unscaled() if self._control is not None else nullcontext()

    def update_schedulers(self, update: Callable[[], None]) -> None:
        """Run an update of torch schedulers on the user's own rates."""
        with self.unscaled():
            update()

    def end(self) -> None:
        """Give the user's own rates back."""
        if self._control is not None:
            self._control.restore()
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
