"""How many optimizer steps a run will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lightning_scale.schedule import LastWindow, Split


class Epoch(NamedTuple):
    """What one epoch gives."""

    batches: Iterable[tuple[Split, int]]
    """Its batches, or an endless run of them: each kind, and how many of it follow."""
    micro_batches: int
    """Micro-batches of each rank after which it ends."""
    samples: int | None = None
    """Samples in it, where its last micro-batch may be short."""


def count_steps(epochs: int, epoch: Callable[[int], Epoch], last_window: LastWindow, fixed_from: int) -> int:
    """Optimizer steps of a run from its first sample on.

    Args:
        epochs: Number of epochs.
        epoch: The epoch that begins after so many samples.
        last_window: Whether a batch that an epoch's end cuts is a step.
        fixed_from: Samples from which on the batch size, and so the steps of an epoch, no longer change.
    """
    steps = samples = 0
    for number in range(epochs):
        taken, consumed = _count_epoch(epoch(samples), last_window)
        if samples >= fixed_from:
            return steps + taken * (epochs - number)
        steps, samples = steps + taken, samples + consumed
    return steps


def _count_epoch(epoch: Epoch, last_window: LastWindow) -> tuple[int, int]:
    """Optimizer steps of one epoch, and samples consumed."""
    steps, samples, left = 0, 0, epoch.micro_batches
    for batch, count in epoch.batches:
        whole = min(count, left // batch.micro_batches)
        steps, samples, left = steps + whole, samples + whole * batch.batch_size, left - whole * batch.micro_batches
        if whole < count:  # the epoch ends
            samples += batch.samples(left)
            steps += left > 0 and last_window == "step"
            break
    return steps, samples if epoch.samples is None else min(samples, epoch.samples)
