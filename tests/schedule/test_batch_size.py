"""What holds for every batch-size schedule."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import BatchSizeSchedule, ConstantBatchSize, LinearRamp, StepSchedule

from .schedules import every_kind, rising, size_by_table
from .sentences import refuses

progress = st.integers(0, 10**14)


@given(every_kind)
def test_changes_agree_with_the_size_on_both_sides_of_every_change(schedule: BatchSizeSchedule) -> None:
    changes = schedule.changes()
    assert changes[0] == (0, schedule.batch_size(0))
    for (start, size), (end, next_size) in pairwise(changes):
        assert start < end
        assert size != next_size
        assert schedule.batch_size(end - 1) == size
        assert schedule.batch_size(end) == next_size
    assert schedule.batch_size(changes[-1][0] + 10**20) == changes[-1][1]


@given(every_kind, progress)
def test_the_size_anywhere_is_that_of_the_last_change(schedule: BatchSizeSchedule, samples: int) -> None:
    assert schedule.batch_size(samples) == size_by_table(schedule, samples)
    assert 1 <= schedule.batch_size(samples) <= schedule.max_batch_size


@given(every_kind)
def test_max_batch_size_is_reached(schedule: BatchSizeSchedule) -> None:
    assert schedule.max_batch_size == max(schedule.batch_size(start) for start, _ in schedule.changes())


@given(rising, progress, progress)
def test_ramps_never_shrink(schedule: BatchSizeSchedule, a: int, b: int) -> None:
    assert schedule.batch_size(min(a, b)) <= schedule.batch_size(max(a, b))


@given(every_kind, progress)
def test_sizes_are_ints(schedule: BatchSizeSchedule, samples: int) -> None:
    assert type(schedule.batch_size(samples)) is int
    assert type(schedule.max_batch_size) is int
    assert all(type(number) is int for change in schedule.changes() for number in change)


@given(every_kind)
def test_negative_and_broken_progress_is_refused(schedule: BatchSizeSchedule) -> None:
    for samples in (-1, 1.5, True, None):
        refuses("samples is", "at least 0", call=lambda s=samples: schedule.batch_size(s))


# -- walking along the steps -------------------------------------------------------------------------------------------


@st.composite
def short_schedules(draw: st.DrawFn) -> BatchSizeSchedule:
    """Changes so close that one step may leap over several."""
    points = sorted(draw(st.sets(st.integers(1, 200), max_size=6)))
    return StepSchedule(" ".join(f"{point}:{draw(st.integers(1, 40))}" for point in [0, *points]))


@given(short_schedules(), st.integers(0, 60))
def test_samples_after_is_the_sum_of_the_steps(schedule: BatchSizeSchedule, steps: int) -> None:
    consumed = 0
    for _ in range(steps):
        consumed += schedule.batch_size(consumed)
    assert schedule.samples_after(steps) == consumed


@given(short_schedules(), st.fractions(0, 400))
def test_steps_until_counts_whole_steps_and_a_part_of_the_last(schedule: BatchSizeSchedule, samples: Fraction) -> None:
    steps, consumed = 0, 0
    while consumed + schedule.batch_size(consumed) <= samples:
        consumed += schedule.batch_size(consumed)
        steps += 1
    assert schedule.steps_until(samples) == steps + (samples - consumed) / schedule.batch_size(consumed)


@given(every_kind, st.integers(0, 10**6))
def test_the_walks_undo_each_other(schedule: BatchSizeSchedule, steps: int) -> None:
    assert schedule.steps_until(schedule.samples_after(steps)) == steps


def test_walks_refuse_what_is_below_0() -> None:
    schedule = ConstantBatchSize(4)
    assert (schedule.samples_after(0), schedule.steps_until(0)) == (0, 0)
    refuses("steps is -1", call=lambda: schedule.samples_after(-1))
    refuses("samples is -1", call=lambda: schedule.steps_until(-1))


# -- the constant one --------------------------------------------------------------------------------------------------


def test_constant() -> None:
    schedule = ConstantBatchSize(256)
    assert [schedule.batch_size(samples) for samples in (0, 1, 10**30)] == [256] * 3
    assert schedule.changes() == [(0, 256)]
    assert schedule.max_batch_size == 256


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "256", None])
def test_constant_refuses(size: object) -> None:
    refuses(f"batch_size is {size!r}", "at least 1", call=lambda: ConstantBatchSize(size))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ConstantBatchSize(256), "ConstantBatchSize(0:256)"),
        (lambda: StepSchedule("0:1 5:2 9:3"), "StepSchedule(0:1 5:2 9:3)"),
        (lambda: StepSchedule("0:1 5:2 9:3 12:4"), "StepSchedule(0:1 5:2 9:3 12:4)"),
        (lambda: StepSchedule("0:1 5:2 9:3 12:4 20:5"), "StepSchedule(0:1 5:2 9:3 ... 20:5)"),
        (lambda: LinearRamp(1, 9, "8 samples"), "LinearRamp(0:1 1:2 2:3 ... 8:9)"),
    ],
)
def test_text(make: Callable[[], BatchSizeSchedule], text: str) -> None:
    assert repr(make()) == text
