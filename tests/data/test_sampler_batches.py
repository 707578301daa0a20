"""Told the batch sizes, the sampler gives each of them exactly, on any number of ranks."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.data import ResumableBatchSampler
from lightning_scale.schedule import BatchSizeSchedule, StepSchedule
from tests.window.batches import exact_sizes, schedules


def take(
    schedule: BatchSizeSchedule,
    size: int,
    micro: int,
    world: int,
    last_window: Literal["step", "drop"],
    consumed: int = 0,
    epoch_start: int = 0,
) -> list[list[list[int]]]:
    """[micro-batch][rank] indices of one epoch."""
    ranks = []
    for rank in range(world):
        sampler = ResumableBatchSampler(size, micro, rank=rank, world_size=world, shuffle=False, positions=True)
        sampler.follow(samples_consumed=consumed, epoch_start=epoch_start, schedule=schedule, last_window=last_window)
        ranks.append(list(sampler))
        if consumed == epoch_start:
            assert len(sampler) == len(ranks[-1])
    return [list(parts) for parts in zip(*ranks, strict=True)]


@given(
    schedule=schedules(least=3),
    size=st.integers(24, 150),
    micro=st.integers(2, 8),
    world=st.integers(1, 3),
    last_window=st.sampled_from(["step", "drop"]),
    epoch_start=st.integers(0, 60),
)
def test_every_batch_has_the_schedules_samples(
    schedule: StepSchedule, size: int, micro: int, world: int, last_window: Literal["step", "drop"], epoch_start: int
) -> None:
    taken = take(schedule, size, micro, world, last_window, epoch_start, epoch_start)
    micro_batches, samples = iter(taken), epoch_start
    for batch in exact_sizes(schedule, epoch_start, size, last_window, world):
        held: list[int] = []
        while len(held) < batch:
            parts = next(micro_batches)
            assert all(1 <= len(part) <= micro for part in parts)
            held += [index for part in parts for index in part]
        assert held == list(range(samples, samples + batch))
        samples += batch
    assert next(micro_batches, None) is None


@given(schedule=schedules(least=3), micro=st.integers(2, 8), world=st.integers(1, 3), data=st.data())
def test_a_resume_at_any_step_goes_on_with_the_same_micro_batches(
    schedule: StepSchedule, micro: int, world: int, data: st.DataObject
) -> None:
    whole = take(schedule, 100, micro, world, "step")
    sizes = exact_sizes(schedule, 0, 100, "step", world)
    done = sum(sizes[: data.draw(st.integers(0, len(sizes)))])
    rest = take(schedule, 100, micro, world, "step", consumed=done)
    assert rest == whole[len(whole) - len(rest) :]
    assert sum(len(part) for parts in rest for part in parts) == sum(sizes) - done


def test_fixed_batches_take_the_samples_of_full_micro_batches() -> None:
    """The order does not depend on whether a callback sets the batch size."""
    told = take(StepSchedule("0:12"), 36, 3, 2, "drop")
    plain = [list(ResumableBatchSampler(36, 3, rank=r, world_size=2, shuffle=False)) for r in range(2)]
    assert told == [list(parts) for parts in zip(*plain, strict=True)]


def test_what_no_rank_can_take_goes_to_the_next_epoch() -> None:
    assert sum(len(p) for parts in take(StepSchedule("0:9"), 29, 2, 3, "step") for p in parts) == 27
