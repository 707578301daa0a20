"""What a callback must offer to own the batch size."""

from __future__ import annotations

from typing import Protocol

from lightning_scale.window.window import LastWindow


class BatchSizeOwner(Protocol):
    """The one callback that says how large the next batch is."""

    last_window: LastWindow
    """What becomes of micro-batches left at an epoch's end: a step of their own, or nothing."""

    def batch_size(self, step: int, samples: int) -> int:
        """Samples of the next optimizer step, over all ranks.

        Args:
            step: Optimizer steps attempted so far.
            samples: Samples consumed so far, or since the stage began where there are stages.
        """
