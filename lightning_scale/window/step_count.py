"""The optimizer steps of an epoch, one kind after another, and how many of them a run will take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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


class Taken(NamedTuple):
    """Optimizer steps of one kind, one after another."""

    batch: Split
    """The batch that is asked for, which an epoch's end may cut."""
    steps: int
    """How many; 0 for micro-batches that are left at an epoch's end and left out."""
    micro_batches: int
    """Of each rank, in each of them."""
    samples: int
    """Of all ranks, in each of them."""


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
    steps = samples = 0
    for taken in epoch_steps(epoch, last_window):
        steps, samples = steps + taken.steps, samples + max(taken.steps, 1) * taken.samples
    return steps, samples


def epoch_steps(epoch: Epoch, last_window: LastWindow) -> Iterator[Taken]:
    """What the loop makes of an epoch, in order.

    Args:
        epoch: The epoch.
        last_window: Whether a batch that its end cuts is a step.
    """
    consumed, left = 0, epoch.micro_batches
    most = math.inf if epoch.samples is None else epoch.samples
    for batch, count in epoch.batches:
        fitting = min(count, left // batch.micro_batches)
        # Only the epoch's last micro-batch may be short: what comes before its window is full.
        short = fitting > 0 and consumed + fitting * batch.batch_size > most
        full = fitting - 1 if short else fitting
        if full:
            yield Taken(batch, full, batch.micro_batches, batch.batch_size)
        consumed, left = consumed + full * batch.batch_size, left - full * batch.micro_batches
        if short:
            yield Taken(batch, 1, batch.micro_batches, int(most - consumed))
            consumed, left = int(most), left - batch.micro_batches
        if fitting < count:  # the epoch ends
            if left > 0:
                samples = min(batch.samples(left), int(min(most, consumed + batch.batch_size)) - consumed)
                yield Taken(batch, int(last_window == "step"), left, samples)
            return
