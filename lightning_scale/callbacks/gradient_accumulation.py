"""The global batch, as a number."""

from __future__ import annotations

import lightning.pytorch as L

from lightning_scale.window import LastWindow, LoopAdapter


class GradientAccumulation(L.Callback):
    """Every optimizer step is the mean gradient of ``batch_size`` samples.

    The number of micro-batches follows from the loader's micro-batch size and the number of ranks. Gradients are not
    synchronized inside a window, and are divided once. Each micro-batch counts by its samples, or by its items where
    ``training_step`` returns ``{"loss": mean over n items, "num_items": n}``: a mean of uneven means is not the mean.

    Args:
        batch_size: Samples per optimizer step, over all ranks and micro-batches.
        last_window: What becomes of micro-batches that are left at an epoch's end: "step" takes a step on their true
            mean, "drop" leaves them out.

    Raises:
        ValueError: for a batch size below 1, or an unknown ``last_window``.
    """

    def __init__(self, batch_size: int, last_window: LastWindow = "step") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give the samples per optimizer step, at least 1.")
        if last_window not in ("step", "drop"):
            raise ValueError(f'last_window is {last_window!r}: write "step" or "drop".')
        self._batch_size = batch_size
        self.last_window = last_window

    def batch_size(self, step: int, samples: int) -> int:
        """Samples of the next optimizer step: always the same."""
        return self._batch_size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            LoopAdapter.attach(trainer).own_batch_size(trainer, type(self).__name__, self)
