"""How one batch is spread over ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_scale.schedule.checks import whole

LastWindow = Literal["step", "drop"]
"""What becomes of samples that are left at an epoch's end: a smaller batch, or nothing."""


@dataclass(frozen=True)
class Split:
    """One batch, spread as evenly as whole samples allow: over ranks, and on each over as few micro-batches as hold it.

    No two of its micro-batches differ by more than one sample, and none is empty. A batch of 17 in micro-batches of at
    most 8 on one rank is 6 + 6 + 5.

    Args:
        batch_size: Samples over all ranks and micro-batches.
        micro_batches: Micro-batches of each rank.
        world_size: Number of ranks.
    """

    batch_size: int
    micro_batches: int
    world_size: int

    @classmethod
    def of(cls, batch_size: int, micro_batch_size: int, world_size: int) -> Split | None:
        """The split into micro-batches of at most ``micro_batch_size`` samples.

        None where a rank would have no samples for one of its micro-batches: for batches smaller than ``world_size``,
        and with micro-batches of 1 for those that ``world_size`` does not divide.
        """
        largest = -(-batch_size // world_size)
        micro_batches = -(-largest // micro_batch_size)
        return cls(batch_size, micro_batches, world_size) if batch_size // world_size >= micro_batches else None

    def size(self, micro_batch: int, rank: int) -> int:
        """Samples of one micro-batch (from 0) on one rank."""
        share, rest = self._shares
        return self._part(share + (rank < rest), micro_batch)

    def place(self, micro_batch: int, rank: int) -> int:
        """Samples of the batch that come before this micro-batch of this rank: a batch is taken rank after rank."""
        share, rest = self._shares
        larger, smaller = self._part(share + 1, micro_batch), self._part(share, micro_batch)
        return self.samples(micro_batch) + min(rank, rest) * larger + max(rank - rest, 0) * smaller

    def samples(self, micro_batches: int) -> int:
        """Samples in the first so many micro-batches of all ranks."""
        share, rest = self._shares
        larger, smaller = self._first(share + 1, micro_batches), self._first(share, micro_batches)
        return rest * larger + (self.world_size - rest) * smaller

    @property
    def _shares(self) -> tuple[int, int]:
        """Samples of each rank, and how many ranks (the first ones) have one more."""
        return divmod(self.batch_size, self.world_size)

    def _part(self, share: int, micro_batch: int) -> int:
        least, more = divmod(share, self.micro_batches)
        return least + (micro_batch < more)

    def _first(self, share: int, micro_batches: int) -> int:
        least, more = divmod(share, self.micro_batches)
        return micro_batches * least + min(micro_batches, more)


def nearest_split(batch_size: int, micro_batch_size: int, world_size: int) -> Split:
    """The split of ``batch_size``, or of the nearest size that can be split; of two the larger.

    With micro-batches of 1 these are the multiples of ``world_size``, and else all sizes from ``world_size`` on.
    """
    split = Split.of(batch_size, micro_batch_size, world_size)
    if split is None:
        split = Split.of(nearest_multiple(batch_size, world_size), micro_batch_size, world_size)
        assert split is not None, "a multiple of the ranks can always be split"
    return split


def nearest_multiple(batch_size: int, unit: int) -> int:
    """The multiple of ``unit`` that is nearest to ``batch_size``, at least ``unit``; of two the larger."""
    return max(unit, (2 * batch_size + unit) // (2 * unit) * unit)


def micro_batches_for(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Full micro-batches that each rank contributes to a batch of a fixed size.

    Raises:
        ValueError: where the ranks' micro-batches cannot make up exactly ``batch_size`` samples; the nearest batch sizes
            that they can are named.
    """
    unit = whole("micro_batch_size", micro_batch_size) * world_size
    count, rest = divmod(batch_size, unit)
    if rest == 0 and count > 0:
        return count
    nearest = f"{count * unit} or {(count + 1) * unit}" if count else f"{unit}"
    raise ValueError(
        f"a batch of {batch_size} samples cannot be made of micro-batches of {micro_batch_size} on {world_size}"
        f" rank{'s' if world_size > 1 else ''} ({unit} samples at a time): write batch_size {nearest}, or another"
        " micro-batch size."
    )
