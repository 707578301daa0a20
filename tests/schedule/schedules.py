"""Random batch-size schedules of every kind, and what they mean in the plainest words."""

from __future__ import annotations

from hypothesis import strategies as st

from lightning_scale.schedule import (
    BatchSizeSchedule,
    ConstantBatchSize,
    GeometricRamp,
    InsteadOfDecay,
    LinearRamp,
    StepSchedule,
)

sizes = st.integers(1, 5000)
spans = st.integers(1, 10**13)


@st.composite
def step_schedules(draw: st.DrawFn) -> StepSchedule:
    points = sorted(draw(st.sets(st.integers(1, 10**12), max_size=6)))
    text = " ".join(f"{point}:{draw(sizes)}" for point in [0, *points])
    if draw(st.booleans()):
        return StepSchedule(text)
    return StepSchedule(text, unit="tokens", tokens_per_sample=draw(st.integers(1, 5000)))


@st.composite
def linear_ramps(draw: st.DrawFn) -> LinearRamp:
    start, increment = draw(sizes), draw(st.integers(1, 100))
    end = start + increment * draw(st.integers(0, 60))
    if draw(st.booleans()):
        return LinearRamp(start, end, f"{draw(spans)} samples", increment)
    return LinearRamp(start, end, f"{draw(spans)} tokens", increment, draw(st.integers(1, 5000)))


@st.composite
def geometric_ramps(draw: st.DrawFn) -> GeometricRamp:
    start, factor = draw(sizes), draw(st.integers(2, 5))
    return GeometricRamp(start, start * factor ** draw(st.integers(0, 6)), f"{draw(spans)} samples", factor)


@st.composite
def instead_of_decays(draw: st.DrawFn) -> InsteadOfDecay:
    start, grow = draw(sizes), draw(st.sampled_from([2, 3, 4, 5, 10]))
    points = sorted(draw(st.sets(st.integers(1, 10**12), min_size=1, max_size=4)))
    cap = draw(st.none() | st.integers(start, start * 200))
    return InsteadOfDecay(start, [f"{p} samples" for p in points], 1 / grow, cap)


rising = linear_ramps() | geometric_ramps() | instead_of_decays() | st.builds(ConstantBatchSize, sizes)
every_kind = rising | step_schedules()


def size_by_table(schedule: BatchSizeSchedule, samples: int) -> int:
    """The size that the list of changes gives: that of the last change at or before ``samples``."""
    size = 0
    for start, value in schedule.changes():
        if start <= samples:
            size = value
    return size
