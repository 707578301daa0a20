"""The window: which micro-batches the next optimizer step is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LastWindow = Literal["step", "drop"]


@dataclass
class Window:
    """Counts one rank's micro-batches towards one optimizer step.

    Every rank counts the same, for its micro-batches have one nominal size, so no rank has to ask another.
    """

    batch_size: int
    """Samples asked for, over all ranks."""
    micro_batches: int
    """Micro-batches of one rank that hold them."""
    seen: int = 0
    """Micro-batches begun."""
    first: int | None = None
    """The first of them that was back-propagated (``training_step`` may return None, or be skipped)."""
    samples: int = 0
    """Samples in them, on this rank."""

    @property
    def full(self) -> bool:
        """Whether the present micro-batch is the last that the batch needs."""
        return self.seen >= self.micro_batches

    def closes(self, *, epoch_ends: bool, last_window: LastWindow) -> bool:
        """Whether the optimizer steps after the present micro-batch."""
        return self.full or (epoch_ends and last_window == "step")


def micro_batches_for(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-batches that each rank contributes to a global batch.

    Args:
        batch_size: Samples per optimizer step, over all ranks.
        micro_batch_size: Samples in one rank's micro-batch.
        world_size: Number of ranks.

    Raises:
        ValueError: where the ranks' micro-batches cannot make up exactly ``batch_size`` samples; the nearest batch sizes
            that they can are named.
    """
    unit = micro_batch_size * world_size
    count, rest = divmod(batch_size, unit)
    if rest == 0 and count > 0:
        return count
    nearest = f"{count * unit} or {(count + 1) * unit}" if count else f"{unit}"
    raise ValueError(
        f"a batch of {batch_size} samples cannot be made of micro-batches of {micro_batch_size} on {world_size}"
        f" rank{'s' if world_size > 1 else ''} ({unit} samples at a time): write batch_size {nearest}, or another"
        " micro-batch size."
    )
