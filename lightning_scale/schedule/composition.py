"""What the learning rate of an optimizer step is, from everything that has a say in it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lightning_scale.schedule.checks import finite, whole
from lightning_scale.schedule.legw import LEGW
from lightning_scale.schedule.shapes import warmup_factor
from lightning_scale.schedule.stage_plan import StagePlan
from lightning_scale.schedule.stages import Stage


@dataclass(frozen=True)
class Rate:
    """A rate that may stand on its own or multiply the base rate.

    Args:
        absolute: Used in place of the base rate where it is not None.
        factor: What that is multiplied with.
    """

    absolute: float | None
    factor: float

    def of(self, base: float) -> float:
        """The rate to use, where ``base`` is what the optimizer's lr or its torch scheduler says."""
        return (base if self.absolute is None else self.absolute) * self.factor


def compose_rate(
    *,
    step: int,
    batch_size: int,
    plan: StagePlan | None = None,
    legw: LEGW | None = None,
    legw_warmup_steps: Fraction | float | None = None,
    stage_warmup_steps: Fraction | None = None,
    ramp_factor: float = 1.0,
    decay_factor: float = 1.0,
) -> Rate:
    """The rate of one optimizer step.

    - Without a plan: the base rate, times LEGW's factor for the batch and its warmup, times the ramp's factor.
    - In a stage with an ``lr``: that, times the stage's warmup and decay. LEGW and the ramp do not enter.
    - In a stage without: the base rate, times LEGW's factor for the batch and the ramp's factor, times the stage's
      warmup and decay. A stage without a warmup of its own takes LEGW's, counted from the stage's start.

    Args:
        step: The optimizer step, from 1, over all stages.
        batch_size: Samples in this step, over all ranks and micro-batches.
        plan: The stages.
        legw: LEGW's rule.
        legw_warmup_steps: LEGW's warmup in steps; ``None`` asks ``legw``, which knows it for a warmup in steps or
            samples.
        stage_warmup_steps: The warmup of the present stage in steps, in place of what the stage says; needed where it
            says epochs.
        ramp_factor: The batch-size ramp's factor for the rate.
        decay_factor: What the batch schedule leaves of a decay to the rate (`BatchSizeSchedule.lr_factor`); it multiplies
            every rate.

    Raises:
        ValueError: for a step outside the plan, a warmup that is needed and not known, or an argument whose owner is
            missing.
    """
    step = whole("step", step)
    finite("ramp_factor", ramp_factor)
    finite("decay_factor", decay_factor)
    for name, value, owner, present in (
        ("legw_warmup_steps", legw_warmup_steps, "legw", legw is not None),
        ("stage_warmup_steps", stage_warmup_steps, "plan", plan is not None),
    ):
        if value is not None and not present:
            raise ValueError(f"{name} is {value}, but there is no {owner}: give {owner}, or leave {name} out.")

    factor = ramp_factor * (1.0 if legw is None else legw.lr_factor(batch_size))
    stage, step_in_stage = (None, step) if plan is None else plan.locate(step)
    if legw is not None and legw_warmup_steps is None and (stage is None or stage.lr is None):
        legw_warmup_steps = legw.warmup_steps()
    warmup = warmup_of(stage, stage_warmup_steps, legw_warmup_steps)
    if stage is None:
        return Rate(None, factor * warmup_factor(step_in_stage, warmup) * decay_factor)
    if stage.lr is not None:
        return Rate(stage.lr, stage.rate_factor(step_in_stage, warmup) * decay_factor)
    return Rate(None, factor * stage.rate_factor(step_in_stage, warmup) * decay_factor)


def warmup_of(
    stage: Stage | None, stage_warmup_steps: Fraction | None, legw_warmup_steps: Fraction | float | None
) -> Fraction | float:
    """The warmup that counts, in optimizer steps: the run's, or that of a stage from its start; 0 for none.

    Args:
        stage: The stage; None for a run without.
        stage_warmup_steps: Its own warmup; None for what it says itself.
        legw_warmup_steps: LEGW's, which a stage with neither ``lr`` nor warmup takes; None without LEGW.
    """
    if stage is None:
        return legw_warmup_steps or 0
    own = stage.warmup_steps() if stage_warmup_steps is None else stage_warmup_steps
    return own if own or stage.lr is not None else legw_warmup_steps or 0
