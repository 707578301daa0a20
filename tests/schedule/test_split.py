"""A batch is spread over ranks and micro-batches without losing or repeating a sample."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule.split import Split, micro_batches_for, nearest_multiple, nearest_split


def by_hand(batch_size: int, micro: int, world: int) -> list[list[int]] | None:
    """Sizes [rank][micro-batch] dealt one sample at a time; None where one stays empty."""
    shares = [0] * world
    for sample in range(batch_size):
        shares[sample % world] += 1
    count = 1
    while max(shares) > count * micro:
        count += 1
    parts = [[0] * count for _ in shares]
    for rank, share in enumerate(shares):
        for sample in range(share):
            parts[rank][sample % count] += 1
    return parts if all(size for rank in parts for size in rank) else None


@given(batch=st.integers(1, 120), micro=st.integers(1, 9), world=st.integers(1, 7))
def test_every_sample_is_in_one_place(batch: int, micro: int, world: int) -> None:
    split, parts = Split.of(batch, micro, world), by_hand(batch, micro, world)
    assert (split is None) == (parts is None)
    if split is None or parts is None:
        assert batch < world or (micro == 1 and batch % world)
        return
    taken: list[int] = []
    for j in range(split.micro_batches):
        assert split.samples(j) == len(taken)
        for rank in range(world):
            size = split.size(j, rank)
            assert size == parts[rank][j]
            assert 1 <= size <= micro
            taken += range(split.place(j, rank), split.place(j, rank) + size)
    assert taken == list(range(batch))
    assert split.samples(split.micro_batches) == batch
    sizes = [size for rank in parts for size in rank]
    assert max(sizes) - min(sizes) <= 1


def test_the_documented_example() -> None:
    split = Split.of(17, 8, 1)
    assert split is not None
    assert [split.size(j, 0) for j in range(split.micro_batches)] == [6, 6, 5]


@given(batch=st.integers(1, 60), micro=st.integers(1, 4), world=st.integers(1, 7))
def test_the_nearest_size_that_can_be_split(batch: int, micro: int, world: int) -> None:
    possible = [size for size in range(1, 80) if Split.of(size, micro, world)]
    nearest = min(possible, key=lambda size: (abs(size - batch), -size))
    assert nearest_split(batch, micro, world).batch_size == nearest


@given(batch=st.integers(1, 60), unit=st.integers(1, 12))
def test_the_nearest_multiple(batch: int, unit: int) -> None:
    multiples = range(unit, 90, unit)
    assert nearest_multiple(batch, unit) == min(multiples, key=lambda size: (abs(size - batch), -size))


@given(batch=st.integers(1, 200), micro=st.integers(1, 9), world=st.integers(1, 9))
def test_fixed_batches_are_made_of_full_micro_batches(batch: int, micro: int, world: int) -> None:
    if batch % (micro * world) == 0:
        assert micro_batches_for(batch, micro, world) * micro * world == batch
        return
    with pytest.raises(ValueError, match="write batch_size") as error:
        micro_batches_for(batch, micro, world)
    fits = [size for size in range(1, 400) if size % (micro * world) == 0]
    nearest = {max([s for s in fits if s < batch], default=None), min(s for s in fits if s > batch)} - {None}
    named = str(error.value).split("write batch_size ")[1].split(",")[0].split(" or ")
    assert {int(size) for size in named} == nearest
