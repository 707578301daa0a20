"""Each layer's weight norm, update norm and trust ratio, in the logs."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LayerStats


@runtime_checkable
class HasLayerStats(Protocol):
    """An optimizer that keeps the statistics of its last step."""

    def layer_stats(self) -> dict[str, LayerStats]: ...


class TrustRatioMonitor(L.Callback):
    """Logs ``weight_norm/<parameter>``, ``update_norm/<parameter>`` and ``trust_ratio/<parameter>``.

    Every n steps all values come to the host at once and go to every logger in one call; other steps cost nothing.
    Smallest, median and largest ratio of the layers that adapt are shown on the progress bar as ``trust_ratio_min``,
    ``trust_ratio_median`` and ``trust_ratio_max``.

    Args:
        every_n_steps: Optimizer steps between two looks.

    Raises:
        ValueError: for ``every_n_steps`` below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: give a whole number of at least 1.")
        self.every_n_steps = every_n_steps
        self._seen_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _with_layer_stats(trainer)
        if not trainer.loggers:
            raise ConfigurationError("TrustRatioMonitor has no logger to write to: leave trainer.logger=False out.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # inside a window
        self._seen_step = step
        if step % self.every_n_steps != 0 and step != 1:
            return
        stats = _with_layer_stats(trainer).layer_stats()
        if not stats:
            return
        table = torch.stack([torch.stack(tuple(s)).double() for s in stats.values()]).tolist()
        metrics = {
            f"{kind}/{name}": value
            for name, row in zip(stats, table, strict=True)
            for kind, value in zip(LayerStats._fields, row, strict=True)
        }
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(metrics, step=step - 1)  # loggers count steps from 0
        adapting = [row[2] for row in table if row[2] != 1.0] or [1.0]
        ratios = torch.tensor(adapting, dtype=torch.float64)
        summary = {"min": ratios.min(), "median": ratios.median(), "max": ratios.max()}
        pl_module.log_dict(
            {f"trust_ratio_{key}": float(value) for key, value in summary.items()}, prog_bar=True, logger=False
        )


def _with_layer_stats(trainer: L.Trainer) -> HasLayerStats:
    """The optimizer, out of a strategy's wrapping.

    Raises:
        ConfigurationError: where it keeps no layer statistics.
    """
    if not trainer.optimizers:
        raise ConfigurationError("TrustRatioMonitor needs an optimizer, and configure_optimizers returned none.")
    outer: Any = trainer.optimizers[0]
    for candidate in (outer, getattr(outer, "optimizer", None)):
        if isinstance(candidate, Optimizer) and isinstance(candidate, HasLayerStats):
            return candidate
    raise ConfigurationError(
        f"TrustRatioMonitor needs an optimizer with layer_stats(), and {type(outer).__name__} has none: use"
        " lightning_scale.optim.LAMB or LARS, or remove TrustRatioMonitor."
    )
