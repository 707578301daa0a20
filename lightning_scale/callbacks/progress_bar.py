"""A progress bar that counts optimizer steps of the whole run."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_WHOLE_NUMBERS = ("stage", "sequence_length", "batch_size")


class StepProgressBar(TQDMProgressBar):
    """Counts optimizer steps, over all stages and epochs, where Lightning's bars count one epoch's micro-batches.

    Beside the count stands what is logged for the progress bar: stage, sequence length, global batch and rate from
    `SequenceLengthStages`, smallest, median and largest trust ratio from `TrustRatioMonitor`, losses.

    Args:
        refresh_rate: Optimizer steps between two updates; 0 for no bar.
        leave: Leave the finished bar in the terminal.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = True) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._shown = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_trainer": None}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # type: ignore[override]
        self.train_progress_bar = self.init_train_tqdm()
        steps = trainer.estimated_stepping_batches
        self.train_progress_bar.total = int(steps) if 0 < steps < math.inf else None
        self.train_progress_bar.set_description("steps")
        self._show(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """An epoch's start does not begin the bar anew."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step != self._shown and (step % max(self.refresh_rate, 1) == 0 or step == self.train_progress_bar.total):
            self._show(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, pl_module)

    def _show(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        bar: Tqdm = self.train_progress_bar
        self._shown = trainer.global_step
        if not bar.disable:
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, module))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:  # type: ignore[override]
        """What stands beside the count, in the fewest characters."""
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        for key in _WHOLE_NUMBERS:
            if key in metrics:
                metrics[key] = int(metrics[key])
        if "lr" in metrics:
            metrics["lr"] = f"{metrics['lr']:.2e}"
        ratios = [metrics.pop(f"trust_ratio_{part}", None) for part in ("min", "median", "max")]
        if None not in ratios:
            metrics["trust_ratio"] = "/".join(f"{ratio:.2g}" for ratio in ratios)
        return metrics
