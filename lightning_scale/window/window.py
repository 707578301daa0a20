"""The window: which micro-batches the next optimizer step is made of, and who says how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lightning_scale.schedule import BatchSizeSchedule, LastWindow, Split


class BatchSizeOwner(Protocol):
    """The one callback that says how large the next batch is."""

    last_window: LastWindow
    """What becomes of samples left at an epoch's end: a step of their own, or nothing."""

    def schedule(self, step: int) -> BatchSizeSchedule:
        """The batch sizes, by the samples consumed so far (where there are stages: since the stage began).

        Args:
            step: Optimizer steps attempted so far; they tell the stage.
        """


@dataclass
class Window:
    """Counts one rank's micro-batches towards one optimizer step.

    Every rank counts the same micro-batches, for every batch is split into as many on each: no rank has to ask another.
    """

    batch_size: int
    """Samples that it should hold, over all ranks; 0 where nobody knows."""
    micro_batches: int
    """Micro-batches of one rank that hold the batch."""
    split: Split | None = None
    """How the loader spreads the batch, where it does; else all ranks' micro-batches are taken to be of one size."""
    seen: int = 0
    """Micro-batches begun."""
    first: int | None = None
    """The first of them that was back-propagated (``training_step`` may return None, or be skipped)."""
    samples: int = 0
    """Samples that the loader was asked for in them, on this rank."""
    held: int = 0
    """Samples that the last of them holds: fewer, where some were filtered out."""
    computed: int = 0
    """The last micro-batch whose loss was computed."""
    zeroed: bool = False
    """Whether gradients of earlier steps are gone."""
    opened_at: int = 0
    """Optimizer steps attempted before it."""

    def begin_micro_batch(self, asked: int, held: int) -> None:
        """Count one more micro-batch, by the samples asked of the loader and those it holds, on this rank."""
        self.seen, self.held = self.seen + 1, held
        self.samples += asked

    @property
    def full(self) -> bool:
        """Whether the present micro-batch is the last that the batch needs."""
        return self.seen >= self.micro_batches

    def closes(self, *, epoch_ends: bool, last_window: LastWindow) -> bool:
        """Whether the optimizer steps after the present micro-batch."""
        return self.full or (epoch_ends and last_window == "step")
