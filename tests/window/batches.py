"""What batches a schedule asks for, worked out by hand, and a check of gradients against them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.data import ResumableBatchSampler
from lightning_scale.schedule import BatchSizeSchedule, StepSchedule


@st.composite
def schedules(draw: st.DrawFn, least: int = 1, largest: int = 12) -> StepSchedule:
    """Up to four sizes, up and down, changing after any number of samples."""
    points = [0, *draw(st.lists(st.integers(1, 60), max_size=3, unique=True).map(sorted))]
    return StepSchedule(" ".join(f"{p}:{draw(st.integers(least, largest))}" for p in points))


def exact_sizes(schedule: BatchSizeSchedule, start: int, size: int, last_window: str, ranks: int = 1) -> list[int]:
    """Batch sizes of an epoch of ``size`` samples that begins after ``start``, where every size can be made."""
    sizes, samples, end = [], start, start + size
    while samples < end:
        batch = schedule.batch_size(samples)
        if samples + batch > end:
            if last_window == "drop" or end - samples < ranks:
                break
            batch = end - samples
        sizes.append(batch)
        samples += batch
    return sizes


def exact_batches(
    schedule: BatchSizeSchedule, size: int, epochs: int, last_window: str, ranks: int = 1
) -> list[list[int]]:
    """Indices of every step, from an unshuffled endless order: what a resumable loader must give."""
    steps, samples = [], 0
    for _ in range(epochs):
        for batch in exact_sizes(schedule, samples, size, last_window, ranks):
            steps.append([position % size for position in range(samples, samples + batch)])
            samples += batch
    return steps


def rounded_batches(
    schedule: BatchSizeSchedule, size: int, micro: int, epochs: int, last_window: str
) -> list[list[int]]:
    """Indices of every step where every epoch gives 0, 1, ..., size-1 in full micro-batches (the last may be short)."""
    steps, samples = [], 0
    for _ in range(epochs):
        place = 0
        while place < size:
            asked = schedule.batch_size(samples)
            multiples = range(micro, asked + 2 * micro, micro)
            batch = min(multiples, key=lambda m: (abs(m - asked), -m))
            held = list(range(place, min(place + batch, size)))
            whole_micro_batches = -(-len(held) // micro) == batch // micro
            if whole_micro_batches or last_window == "step":
                steps.append(held)
            samples, place = samples + len(held), place + batch
    return steps


def resumable(size: int, micro: int, workers: int = 0, **options: bool) -> DataLoader[tuple[Tensor, ...]]:
    """The numbers 0 to size-1, over and over, in batches of any size."""
    sampler = ResumableBatchSampler(size, micro, **{"shuffle": False, **options})
    return DataLoader(TensorDataset(torch.arange(size)), batch_sampler=sampler, num_workers=workers)


def mean_over(indices: Iterable[int], items: Tensor) -> Tensor:
    """The mean gradient of a batch, in float64, where sample i is the mean of ``items[i]`` items."""
    gradient = torch.zeros(len(items), dtype=torch.float64)
    for index in indices:
        gradient[index] += items[index]
    return gradient / gradient.sum()


def check(gradients: list[Tensor], steps: list[list[int]], items: Tensor, rtol: float = 4e-7) -> None:
    assert len(gradients) == len(steps)
    for gradient, step in zip(gradients, steps, strict=True):
        torch.testing.assert_close(gradient.double(), mean_over(step, items), rtol=rtol, atol=0)
