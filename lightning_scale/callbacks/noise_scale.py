"""The critical batch size, measured while training runs."""

from __future__ import annotations

import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.monitoring import (
    EndOfFitPicture,
    Estimate,
    GradientNormHooks,
    History,
    SmoothedNoise,
    UnitSums,
    estimate,
    norm,
    square_of,
)
from lightning_scale.optim.backends.device import widest
from lightning_scale.window import LoopAdapter
from lightning_scale.window.conflicts import refuse_manual_optimization
from lightning_scale.window.mean_gradient import sum_over_ranks, users_own


class GradientNoiseScale(L.Callback):
    """Logs the critical batch size B = ``tr Σ / |G|²`` (McCandlish et al. 2018, arXiv 1812.06162), in samples.

    Much smaller batches make twice the progress with twice the samples a step; much larger ones spend samples for little.
    G is the true gradient and Σ the covariance of one sample's. Both terms come without bias from gradients that training
    computes anyway: those of the micro-batches of all ranks, each by itself, against the step's own mean. They are smoothed
    one by one before their ratio is taken. Sizes may differ: each step is seen with its own.

    Every n steps, to every logger: ``critical_batch_size`` (left out while noise hides ``|G|²``), and
    ``noise_scale/batch_size``, ``noise_scale/gradient_square`` and ``noise_scale/trace``; on the progress bar the first.
    The averages are part of checkpoints. At the end a picture is left, ``gradient_noise_scale.png``.

    Such a step reads every micro-batch's gradients once more and waits for the device once; on several ranks it takes one
    collective more. Other steps cost nothing.

    Runs on one process and under DDP. A step must hold at least two micro-batches, over ranks and time.

    Args:
        every_n_steps: Optimizer steps between two looks.
        smoothing: What the averages keep of themselves at each look; they reach back over about 1 / (1 - smoothing) looks.
        picture: Draw one at the end (needs matplotlib).
        dir: Where it goes; ``None`` for the run's log folder.

    Raises:
        ValueError: for ``every_n_steps`` below 1, or ``smoothing`` below 0 or not below 1.
        ConfigurationError: before training, under strategies that keep gradients themselves (ZeRO, FSDP), with manual
            optimization, and where every step has a single micro-batch.
    """

    def __init__(
        self, every_n_steps: int = 10, smoothing: float = 0.95, picture: bool = True, dir: str | None = None
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}: give a whole number of at least 1.")
        self.every_n_steps = every_n_steps
        self.noise = SmoothedNoise(smoothing)
        self.looks = History()
        self._picture = EndOfFitPicture("gradient_noise_scale.png", picture, dir)
        self._adapter: LoopAdapter | None = None
        self._hooks: GradientNormHooks | None = None
        self._units: list[tuple[list[torch.Tensor], Any, Any, int]] = []  # norms, weight, items, samples
        self._metrics: dict[str, float] = {}  # of the step under way

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._adapter = LoopAdapter.attach(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        refuse_manual_optimization(pl_module, type(self).__name__)
        strategy = trainer.strategy
        plain = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not isinstance(
            strategy, DeepSpeedStrategy
        )
        if not plain:
            raise ConfigurationError(
                f"GradientNoiseScale compares each micro-batch's gradient with the step's mean, and"
                f" {type(strategy).__name__} keeps neither whole on a rank: measure with strategy: ddp (a smaller model or a"
                " short run tells the scale, too), or remove GradientNoiseScale."
            )
        if len(trainer.optimizers) != 1:
            raise ConfigurationError(
                f"GradientNoiseScale takes one optimizer, and configure_optimizers returned {len(trainer.optimizers)}:"
                " return one optimizer with a parameter group for each part."
            )
        optimizer = users_own(trainer.optimizers[0])
        self._hooks = GradientNormHooks(lambda: (p for group in optimizer.param_groups for p in group["params"]))
        self._units, self._metrics = [], {}
        self._picture.begin(trainer, type(self).__name__)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._adapter is not None, "setup comes first"
        if trainer.world_size == 1 and self._adapter.micro_batches_a_step == 1:
            raise ConfigurationError(
                "GradientNoiseScale compares micro-batches with their mean, and every step has one: make the loader's"
                " batch smaller and give the step's size to GradientAccumulation (2 to 8 micro-batches a step are enough),"
                " or train on several ranks."
            )

    # -- a window ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._adapter is not None and self._adapter.window_opens:
            self._units = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if self._hooks is not None and self._due(trainer):
            self._hooks.open()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._hooks is not None and self._adapter is not None and self._due(trainer):
            it = self._adapter.micro_batch(trainer)
            self._units.append((self._hooks.close(), it.weight, it.items, it.samples))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        # The adapter, which is first, has made the gradients the step's mean; nothing has clipped them yet.
        if self._hooks is None or not self._due(trainer):
            return
        step, hooks = trainer.global_step + 1, self._hooks
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        sums = UnitSums()
        for norms, weight, items, samples in self._units:
            sums += UnitSums.of_unit(square_of(norms) / scale**2, float(weight), float(items), samples)
        self._units = []
        sums, in_parts = self._over_ranks(trainer, sums, hooks.in_parts)
        if in_parts:
            rank_zero_warn(
                "GradientNoiseScale measures nothing: the gradient of some parameter comes in several parts of a backward"
                " pass, as torch.utils.checkpoint does it with use_reentrant=True; write use_reentrant=False."
            )
            self._hooks = None
            return
        mean_square = square_of(
            [norm(p.grad) for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        )
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            mean_square /= scale**2  # such optimizers unscale gradients inside their step
        if self._adapter is not None and not self._adapter.makes_means and sums.weight:
            mean_square *= (trainer.world_size / sums.weight) ** 2  # of the last window, which may be short
        seen = estimate(sums, mean_square)
        if seen is not None:
            self._take_in(seen, step, sums.samples)

    def _over_ranks(self, trainer: L.Trainer, sums: UnitSums, in_parts: bool) -> tuple[UnitSums, bool]:
        """The sums of all ranks, and whether it holds for any: one collective."""
        if trainer.world_size == 1:
            return sums, in_parts
        device = trainer.strategy.root_device
        own = torch.tensor([*astuple(sums), float(in_parts)], dtype=widest(device), device=device)
        *values, parts = sum_over_ranks(own, trainer).tolist()
        return UnitSums(*values), parts > 0

    def _take_in(self, seen: Estimate, step: int, batch_size: float) -> None:
        noise = self.noise
        noise.add(seen)
        critical = noise.critical_batch_size
        terms = {"batch_size": batch_size, "gradient_square": noise.gradient_square, "trace": noise.trace}
        self._metrics = {f"noise_scale/{name}": value for name, value in terms.items()}
        if critical is not None:
            self._metrics["critical_batch_size"] = critical
        single = {"seen_gradient_square": seen.gradient_square, "seen_trace": seen.trace}
        self.looks.add(step, {**terms, **single, "critical_batch_size": math.nan if critical is None else critical})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        metrics, self._metrics = self._metrics, {}
        if not metrics:
            return
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(metrics, step=trainer.global_step - 1)  # loggers count steps from 0
        if "critical_batch_size" in metrics:
            pl_module.log("critical_batch_size", metrics["critical_batch_size"], prog_bar=True, logger=False)

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether the step under way is looked at."""
        return (trainer.global_step + 1) % self.every_n_steps == 0

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"noise": self.noise.state_dict(), "looks": self.looks.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.noise.load_state_dict(state_dict["noise"])
        self.looks.load_state_dict(state_dict["looks"])

    # -- the end -------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not len(self.looks) and trainer.global_step >= self.every_n_steps:
            rank_zero_warn("GradientNoiseScale has measured nothing: no step that it looked at had two micro-batches.")
        self._picture.finish(trainer, self._draw if len(self.looks) else None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._hooks is not None:
            self._hooks.close()
        self._picture.fail(trainer, self._draw if len(self.looks) else None)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._adapter = self._hooks = None

    def _draw(self, path: Path) -> None:
        from lightning_scale.monitoring.plots import draw_noise

        draw_noise(self.looks, path)
