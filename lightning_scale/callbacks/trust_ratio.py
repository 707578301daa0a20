"""Each layer's weight norm, update norm and trust ratio, in the logs and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.monitoring import EndOfFitPicture, History, RatioWarnings
from lightning_scale.optim import LayerRule, LayerStats
from lightning_scale.optim.backends.device import widest


@runtime_checkable
class HasLayerStats(Protocol):
    """An optimizer that keeps the statistics of its last step, and how it was scaled."""

    def layer_stats(self) -> dict[str, LayerStats]: ...

    def layer_rules(self) -> dict[str, LayerRule]: ...


class TrustRatioMonitor(L.Callback):
    """Logs ``weight_norm``, ``update_norm``, ``trust_ratio`` and ``step_size`` of every parameter, as ``<kind>/<parameter>``.

    Every n steps all values come to the host at once and go to every logger in one call; other steps cost nothing. To
    TensorBoard go histograms over the layers, too: ``trust_ratios`` (of those that adapt) and ``log10_step_sizes``.
    Smallest, median and largest ratio of the layers that adapt are shown on the progress bar as ``trust_ratio_min``,
    ``trust_ratio_median`` and ``trust_ratio_max``. The numbers are those of whole layers under every strategy, and one rank
    writes them.

    ``step_size`` is rate × ratio × update norm over weight norm: ‖Δw‖ / ‖w‖ with LAMB and with LARS's
    ``trust_norm="momentum"``. With LARS's other form it is the part of this step's gradient, before momentum (which takes up
    to 1 / (1 - momentum) times as much over time) and weight decay. Hinton's rule of thumb is 1e-3 to 1e-2.

    At the end a picture is left, ``trust_ratios.png``: ratios and step sizes as colours, layers over steps. What it is drawn
    from is part of checkpoints, so that a resumed run's picture is whole.

    One warning a layer and cause names layers whose ratio leaves ``band``, stays at 1 although they adapt, or stays at a
    bound of ``trust_ratio_clip``.

    Args:
        every_n_steps: Optimizer steps between two looks.
        band: The smallest and the largest ratio that are no cause for a warning; ``None``: any.
        patience: Looks in a row at 1 or at a bound that bring a warning.
        picture: Draw one at the end (needs matplotlib).
        dir: Where it goes; ``None`` for the run's log folder.

    Raises:
        ValueError: for ``every_n_steps`` or ``patience`` below 1, or a band that is none.
        ConfigurationError: before training, where the optimizer keeps no statistics, or there is no logger.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        band: tuple[float, float] | None = None,
        patience: int = 5,
        picture: bool = True,
        dir: str | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: give a whole number of at least 1.")
        self.every_n_steps = every_n_steps
        self.ratios, self.step_sizes = History(), History()
        self._warnings = RatioWarnings(band, patience)
        self._picture = EndOfFitPicture("trust_ratios.png", picture, dir)
        self._seen_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _with_layer_stats(trainer)
        if not trainer.loggers:
            raise ConfigurationError("TrustRatioMonitor has no logger to write to: leave trainer.logger=False out.")
        self._picture.begin(trainer, type(self).__name__)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # inside a window
        self._seen_step = step
        if step % self.every_n_steps != 0 and step != 1:
            return
        optimizer = _with_layer_stats(trainer)
        stats, rules = optimizer.layer_stats(), optimizer.layer_rules()
        if not stats:
            return
        values = torch.stack([torch.stack(tuple(s)).to(widest(s[0].device)) for s in stats.values()]).tolist()
        table = dict(zip(stats, values, strict=True))
        sizes = {name: _step_size(*row, lr=float(rules[name].lr)) for name, row in table.items()}
        ratios = {name: ratio for name, (_, _, ratio) in table.items() if rules[name].adapts}
        self.ratios.add(step, ratios)
        self.step_sizes.add(step, sizes)
        self._log(trainer, table, sizes, ratios)
        for sentence in self._warnings.check(step, ratios, {name: rules[name].clip for name in ratios}):
            rank_zero_warn(f"TrustRatioMonitor, {sentence}")
        shown = torch.tensor(list(ratios.values()) or [1.0], dtype=torch.float64)
        summary = {"min": shown.min(), "median": shown.median(), "max": shown.max()}
        pl_module.log_dict(
            {f"trust_ratio_{key}": float(value) for key, value in summary.items()}, prog_bar=True, logger=False
        )

    def _log(
        self, trainer: L.Trainer, table: dict[str, list[float]], sizes: dict[str, float], ratios: dict[str, float]
    ) -> None:
        metrics = {
            f"{kind}/{name}": value
            for name, row in table.items()
            for kind, value in zip((*LayerStats._fields, "step_size"), (*row, sizes[name]), strict=True)
        }
        logs = [math.log10(size) for size in sizes.values() if 0 < size < math.inf]
        step = trainer.global_step - 1  # loggers count steps from 0
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(metrics, step=step)
            if isinstance(logger, TensorBoardLogger):
                for tag, values in (("trust_ratios", list(ratios.values())), ("log10_step_sizes", logs)):
                    if values:
                        logger.experiment.add_histogram(tag, torch.tensor(values), step)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "ratios": self.ratios.state_dict(),
            "step_sizes": self.step_sizes.state_dict(),
            "watch": self._warnings.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.ratios.load_state_dict(state_dict["ratios"])
        self.step_sizes.load_state_dict(state_dict["step_sizes"])
        self._warnings.load_state_dict(state_dict["watch"])

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._picture.finish(trainer, self._draw if len(self.step_sizes) else None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._picture.fail(trainer, self._draw if len(self.step_sizes) else None)

    def _draw(self, path: Path) -> None:
        from lightning_scale.monitoring.plots import draw_heat_maps

        draw_heat_maps(self.ratios, self.step_sizes, path)


def _step_size(weight_norm: float, update_norm: float, ratio: float, *, lr: float) -> float:
    """‖Δw‖ / ‖w‖; NaN for a layer of zeros."""
    return lr * ratio * update_norm / weight_norm if weight_norm > 0 else math.nan


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
