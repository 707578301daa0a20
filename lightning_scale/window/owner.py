"""What a callback must offer to own the batch size."""

from __future__ import annotations

from typing import Protocol

from lightning_scale.schedule import BatchSizeSchedule, LastWindow


class BatchSizeOwner(Protocol):
    """The one callback that says how large the next batch is."""

    last_window: LastWindow
    """What becomes of samples left at an epoch's end: a step of their own, or nothing."""

    def schedule(self, step: int) -> BatchSizeSchedule:
        """The batch sizes, by the samples consumed so far (where there are stages: since the stage began).

        Args:
            step: Optimizer steps attempted so far; they tell the stage.
        """
