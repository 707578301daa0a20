"""A global batch that grows during training."""

from __future__ import annotations

from typing import Any, get_args

import lightning.pytorch as L

from lightning_scale.schedule import BatchSizeSchedule, InsteadOfDecay, LastWindow, LRScaling, lr_scale, parse_schedule
from lightning_scale.schedule.checks import one_of, whole
from lightning_scale.window import LoopAdapter


class BatchSizeRamp(L.Callback):
    """Every optimizer step is the mean gradient of as many samples as a schedule says after the samples consumed so far.

    The micro-batch stays and their number changes, at any step and also inside an epoch. With
    `lightning_scale.data.ResumableBatchSampler` every size comes out exactly: a batch is spread evenly over ranks and over
    as few micro-batches as hold it, some of them a sample smaller. Other loaders give full micro-batches only, and sizes are
    rounded to the nearest multiple of micro-batch × ranks (of two the larger), with a warning. Logged at every step:
    ``batch_size`` (the true one), ``samples_consumed``, and ``lr`` where it is scaled.

    Args:
        schedule: "samples:batch" pairs such as "0:256 1M:512 4M:1024", a number, or a schedule of `lightning_scale.schedule`:
            ``LinearRamp``, ``GeometricRamp``, ``InsteadOfDecay``, ``StepSchedule(unit="tokens")``.
        lr_scaling: How the optimizer's rate, tuned for the schedule's first size, follows the batch: "none", "sqrt",
            "linear", or "linear_then_sqrt". "none" beside `LEGWWarmup`, whose rate follows the batch already, and with
            ``InsteadOfDecay``, whose point is a rate that stays.
        last_window: What becomes of samples that are left at an epoch's end: "step" takes a step on their true mean,
            "drop" leaves them out.
        noise_scale: The gradient noise scale in samples, where "linear_then_sqrt" goes over to the root.
        micro_batch_size: Samples in one micro-batch of one rank, for a loader that does not say it (``batch_size=None``).

    Raises:
        ValueError: for a schedule that cannot be read, an unknown ``lr_scaling`` or ``last_window``, or a ``noise_scale``
            missing or not used.
    """

    def __init__(
        self,
        schedule: int | str | BatchSizeSchedule,
        lr_scaling: LRScaling = "none",
        last_window: LastWindow = "step",
        noise_scale: float | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        self.micro_batch_size = None if micro_batch_size is None else whole("micro_batch_size", micro_batch_size)
        self._schedule = parse_schedule(schedule)
        self.lr_scaling: LRScaling = lr_scaling
        self._noise_scale = noise_scale
        one_of("last_window", last_window, get_args(LastWindow))
        self.last_window = last_window
        self._base = self._schedule.batch_size(0)
        self._factor(self._base)  # refuses arguments that do not go together
        self._adapter: LoopAdapter | None = None
        if lr_scaling != "none" and isinstance(self._schedule, InsteadOfDecay):
            raise ValueError(
                f'lr_scaling is "{lr_scaling}", but InsteadOfDecay grows the batch in place of changing the rate: leave'
                " lr_scaling out, or use another schedule."
            )

    def schedule(self, step: int) -> BatchSizeSchedule:
        """The batch sizes."""
        return self._schedule

    def _factor(self, batch_size: int) -> float:
        return lr_scale(self.lr_scaling, batch_size, self._base, self._noise_scale)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._adapter = LoopAdapter.attach(trainer)
        self._adapter.own_batch_size(type(self).__name__, self)
        if self.lr_scaling != "none" or isinstance(self._schedule, InsteadOfDecay):
            self._adapter.scale_rate(self._factor if self.lr_scaling != "none" else None)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._adapter is not None:
            self._adapter.log_step(pl_module)
