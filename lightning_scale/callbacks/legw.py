"""LEGW: linear-epoch gradual warmup."""

from __future__ import annotations

import lightning.pytorch as L

from lightning_scale.schedule import LEGW, LRScaling
from lightning_scale.window import LoopAdapter


class LEGWWarmup(L.Callback):
    """Learning rate and warmup that need no re-tuning when the batch grows (You et al. 2019, arXiv 1901.08256).

    The optimizer's ``lr`` (or its torch scheduler's) is the one tuned at ``base_batch_size`` = B₀. At batch B = k·B₀ the
    peak is √k times that, and the warmup k times as many epochs: W = e₀·N/B₀ optimizer steps, the same for every k
    (N samples an epoch). Step t = 1, 2, ... uses ``min(1, t/W)`` of the peak.

    Beside `SequenceLengthStages`, it gives the peak to every stage without an ``lr`` of its own, and the warmup, counted
    from the stage's start, to those of them whose own is zero. A stage with an ``lr`` has its own warmup or none; a
    warning says so.

    Args:
        base_batch_size: B₀, samples per optimizer step over all ranks.
        base_warmup: The warmup tuned at B₀: "0.3125 epochs", "500 steps", "128K samples" or "0.3125%" of training.
        lr_scaling: "sqrt" (LEGW), "linear", "none", or "linear_then_sqrt".
        noise_scale: The gradient noise scale in samples, where "linear_then_sqrt" goes over to the root.

    Raises:
        ValueError: for an argument out of range, or a warmup without a unit.
    """

    def __init__(
        self,
        base_batch_size: int,
        base_warmup: str = "0 steps",
        lr_scaling: LRScaling = "sqrt",
        noise_scale: float | None = None,
    ) -> None:
        self.rule = LEGW(base_batch_size, base_warmup, lr_scaling, noise_scale)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            LoopAdapter.attach(trainer).use_legw(self.rule)
