"""The global batch, as a number."""

from __future__ import annotations

from typing import Any, get_args

import lightning.pytorch as L

from lightning_scale.schedule import BatchSizeSchedule, ConstantBatchSize, LastWindow
from lightning_scale.schedule.checks import one_of, whole
from lightning_scale.window import LoopAdapter


class GradientAccumulation(L.Callback):
    """Every optimizer step is the mean gradient of ``batch_size`` samples.

    The number of micro-batches follows from the loader's micro-batch size and the number of ranks. Gradients are not
    synchronized inside a window, and are divided once. Each micro-batch counts by its samples, or by its items where
    ``training_step`` returns ``{"loss": mean over n items, "num_items": n}``: a mean of uneven means is not the mean.
    Logged at every step: ``batch_size``, the samples it was the mean of, ``samples_consumed``, and
    ``lr`` where it is scaled.

    Args:
        batch_size: Samples per optimizer step, over all ranks and micro-batches.
        last_window: What becomes of micro-batches that are left at an epoch's end: "step" takes a step on their true
            mean, "drop" leaves them out.
        micro_batch_size: Samples in one micro-batch of one rank, for a loader that does not say it (``batch_size=None``).

    Raises:
        ValueError: for a size below 1, or an unknown ``last_window``.
    """

    def __init__(self, batch_size: int, last_window: LastWindow = "step", micro_batch_size: int | None = None) -> None:
        self._schedule = ConstantBatchSize(batch_size)
        self.micro_batch_size = None if micro_batch_size is None else whole("micro_batch_size", micro_batch_size)
        one_of("last_window", last_window, get_args(LastWindow))
        self.last_window = last_window
        self._adapter: LoopAdapter | None = None

    def schedule(self, step: int) -> BatchSizeSchedule:
        """Always the same size."""
        return self._schedule

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._adapter = LoopAdapter.attach(trainer)
            self._adapter.own_batch_size(type(self).__name__, self)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._adapter is not None:
            self._adapter.log_step(pl_module)
