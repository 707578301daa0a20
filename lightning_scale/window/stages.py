"""Which stage training is in, and what its data must look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_scale.data import StageData, StagedDataModule
from lightning_scale.schedule import Stage, StagePlan


class StageController:
    """Takes a DataModule from stage to stage.

    Args:
        plan: The stages, in order.
        data: The DataModule, or the module, that is told of each stage.
        on_begin: Called with the stage's index and the stage where one begins (not where one is resumed).
    """

    def __init__(self, plan: StagePlan, data: StagedDataModule, on_begin: Callable[[int, Stage], None]) -> None:
        self.plan = plan
        self.samples = 0
        """Samples consumed in the present stage."""
        self.serving: int | None = None
        """The stage that the loaders at hand belong to."""
        self._data = data
        self._on_begin = on_begin

    @property
    def stage(self) -> Stage:
        """The stage that the loaders at hand belong to."""
        assert self.serving is not None, "asked for a stage before one was entered"
        return self.plan.stages[self.serving]

    def changes_at(self, step: int) -> bool:
        """Whether the stage after ``step`` optimizer steps is another than the one served."""
        return self.plan.at(step).index != self.serving

    def ends_after(self, step: int) -> bool:
        """Whether the stage that is served ends with the optimizer step that makes it ``step``."""
        return step >= self.plan.total_steps or self.changes_at(step)

    def enter(self, step: int, early: bool = False) -> None:
        """Tell the data, and whoever asked, of the stage after ``step`` optimizer steps.

        Args:
            step: Optimizer steps attempted so far.
            early: Whether a checkpoint has told the samples, and not yet the steps.
        """
        position = self.plan.at(step)
        begins = position.step == 0
        if begins and not early:
            self.samples = 0
        self.serving = position.index
        self._data.set_stage(self.data())
        if begins and position.index > 0:
            self._on_begin(position.index, position.stage)

    def data(self) -> StageData:
        """What the present stage asks of its data."""
        assert self.serving is not None, "asked for a stage before one was entered"
        stage = self.stage
        return StageData(self.serving, stage.sequence_length, stage.micro_batch_size, stage.total_samples, self.samples)

    def state_dict(self) -> dict[str, Any]:
        return {"stage_samples": self.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples = state_dict.get("stage_samples", 0)
