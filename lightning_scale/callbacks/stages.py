"""Training in stages of growing sequence length."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L

from lightning_scale.data import StagedDataModule, ranks
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.state.reset import reset_bias_correction, reset_moments
from lightning_scale.schedule import (
    BatchSizeSchedule,
    ConstantBatchSize,
    LastWindow,
    Stage,
    StagePlan,
    micro_batches_for,
)
from lightning_scale.window import LoopAdapter, StageController


class SequenceLengthStages(L.Callback):
    """One stage after another, each with its sequence length, batch, steps, rate and warmup (BERT's two stages).

    A stage's end closes the batch and the Lightning epoch, and has the loaders built anew. ``max_steps`` becomes the
    stages' sum. Logged at every step: ``stage`` (from 1), ``sequence_length``, ``batch_size``,
    ``lr``, and ``samples_consumed``, which counts over all stages.

    The DataModule follows by one method, ``set_stage(stage: lightning_scale.data.StageData)``, called before its
    ``train_dataloader()`` and ``val_dataloader()`` in every stage.

    Args:
        stages: The stages, in order.
        last_window: What becomes of micro-batches left where the loader ends inside a stage: "step" takes a step on
            their true mean, "drop" leaves them out. A loader that lasts for the whole stage (``stage.samples``)
            leaves none.

    Raises:
        ValueError: for no stages.
    """

    def __init__(self, stages: list[Stage], last_window: LastWindow = "step") -> None:
        self.plan = StagePlan(stages)
        self.last_window = last_window
        self._schedules = [stage.schedule for stage in self.plan.stages]
        self._adapter: LoopAdapter | None = None

    def schedule(self, step: int) -> BatchSizeSchedule:
        """The batch sizes of the stage after ``step`` optimizer steps."""
        return self._schedules[self.plan.at(step).index]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = _staged_data(trainer, pl_module)
        self._adapter = LoopAdapter.attach(trainer)  # it knows which ranks hold one model, and count once
        for number, planned in enumerate(self.plan.stages, 1):
            _check_batch(number, planned, ranks.world_size())
        self._adapter.own_batch_size(type(self).__name__, self)
        self._adapter.follow_stages(StageController(self.plan, data, lambda _, new: _begin(trainer, new)))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        adapter = self._adapter
        if adapter is None or adapter.stages is None or adapter.stages.serving is None:
            return
        number, length = adapter.stages.serving + 1, adapter.stages.stage.sequence_length
        adapter.log_step(pl_module, stage=number, sequence_length=length)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._adapter = None


def _staged_data(trainer: L.Trainer, module: L.LightningModule) -> StagedDataModule:
    """The DataModule, or the module itself, that can follow stages."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    for candidate in (datamodule, module):
        if isinstance(candidate, StagedDataModule):
            return candidate
    name = type(datamodule if datamodule is not None else module).__name__
    raise ConfigurationError(
        f"SequenceLengthStages needs data that can follow stages, and {name} has no method set_stage: add"
        " `def set_stage(self, stage: lightning_scale.data.StageData) -> None`, and build the loaders with its"
        " sequence_length and micro_batch_size."
    )


def _check_batch(number: int, stage: Stage, world_size: int) -> None:
    """Raises ConfigurationError for a fixed batch that micro-batches on this many ranks cannot make up."""
    schedule = stage.schedule
    if stage.micro_batch_size is None or not isinstance(schedule, ConstantBatchSize):
        return
    try:
        micro_batches_for(schedule.size, stage.micro_batch_size, world_size)
    except ValueError as error:
        raise ConfigurationError(f"stage {number}: {error}") from None


def _begin(trainer: L.Trainer, stage: Stage) -> None:
    """What a stage asks of the optimizer where it begins."""
    for optimizer in trainer.optimizers:
        if stage.moments == "reset":
            reset_moments(optimizer)
        if stage.bias_correction_step == "reset":
            reset_bias_correction(optimizer)
