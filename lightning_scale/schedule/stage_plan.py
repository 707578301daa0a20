"""Stages of training, one after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from lightning_scale.schedule.checks import whole
from lightning_scale.schedule.stages import Stage


@dataclass(frozen=True)
class StagePosition:
    """Where in a plan the next optimizer step lies.

    Args:
        index: The stage, from 0.
        stage: The stage itself.
        step: Optimizer steps already attempted in it.
        is_last: Whether it is the plan's last stage.
    """

    index: int
    stage: Stage
    step: int
    is_last: bool


class StagePlan:
    """Stages one after the other.

    Args:
        stages: At least one.

    Raises:
        ValueError: for none.
    """

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = tuple(stages)
        if not self.stages:
            raise ValueError("stages is empty: give at least one Stage(sequence_length, steps, batch_size).")
        self.boundaries = tuple(accumulate(stage.steps for stage in self.stages))
        """Optimizer steps at which each stage ends, counted from the plan's start."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages together."""
        return self.boundaries[-1]

    def at(self, step: int) -> StagePosition:
        """The stage of the next optimizer step.

        Args:
            step: Optimizer steps already attempted, from 0; ``total_steps`` gives the last stage's end.

        Raises:
            ValueError: for a step outside the plan.
        """
        step = whole("step", step, 0)
        if step > self.total_steps:
            raise ValueError(
                f"step is {step}, beyond the {self.total_steps} steps of the stages: give a step from 0 to"
                f" {self.total_steps}."
            )
        last = len(self.stages) - 1
        index = min(bisect_right(self.boundaries, step), last)
        start = self.boundaries[index] - self.stages[index].steps
        return StagePosition(index, self.stages[index], step - start, index == last)

    def locate(self, step: int) -> tuple[Stage, int]:
        """The stage that an optimizer step belongs to, and which step of that stage it is, from 1.

        Args:
            step: The optimizer step, from 1 to ``total_steps``, over all stages.

        Raises:
            ValueError: for a step outside the plan.
        """
        step = whole("step", step)
        if step > self.total_steps:
            raise ValueError(
                f"step is {step}, beyond the {self.total_steps} steps of the stages: give a step from 1 to"
                f" {self.total_steps}."
            )
        position = self.at(step - 1)
        return position.stage, position.step + 1

    def lr(self, step: int) -> float:
        """The rate of an optimizer step.

        Args:
            step: The optimizer step, from 1 to ``total_steps``, over all stages.

        Raises:
            ValueError: for a step outside the plan, or in a stage without ``lr``.
        """
        stage, step_in_stage = self.locate(step)
        return stage.rate(step_in_stage)
