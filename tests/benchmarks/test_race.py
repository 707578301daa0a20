"""Turns, shares of time, and ratios, on a clock that shows what the test wants."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.measure.race import Lane, race, warm_up
from benchmarks.measure.spread import Spread, ratios, spread
from benchmarks.measure.stopwatch import CpuStopwatch


class Clock:
    """Stands still but for the work that moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.done: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes these times one after the other, and then the last one again and again."""
        times = list(seconds)

        def work() -> None:
            self.seconds += times.pop(0) if len(times) > 1 else times[0]
            self.done.append(name)

        return work


def times(results: dict[str, list[object]], name: str) -> list[float | None]:
    return [None if sample is None else sample.seconds for sample in results[name]]  # type: ignore[attr-defined]


def test_everyone_once_a_round_in_changing_order() -> None:
    clock = Clock()
    lanes = [Lane(name, clock.work(name, 1.0)) for name in "abcd"]
    race(lanes, CpuStopwatch(clock), rounds=6)
    rounds = ["".join(clock.done[i : i + 4]) for i in range(0, 24, 4)]
    assert all(sorted(r) == list("abcd") for r in rounds)
    assert len(set(rounds)) > 1


def test_what_comes_before_is_not_in_the_time() -> None:
    clock = Clock()
    lane = Lane("a", clock.work("a", 2.0), before=clock.work("flush", 50.0))
    results = race([lane], CpuStopwatch(clock), rounds=2)
    assert times(results, "a") == [2.0, 2.0]
    assert clock.done == ["flush", "a", "flush", "a"]


def test_who_has_used_its_share_sits_out_and_the_baseline_never_does() -> None:
    clock = Clock()
    lanes = [
        Lane("slow", clock.work("slow", 10.0)),
        Lane("quick", clock.work("quick", 1.0)),
        Lane("baseline", clock.work("baseline", 5.0), always=True),
    ]
    results = race(lanes, CpuStopwatch(clock), rounds=100, least=2, seconds=60.0)
    assert times(results, "slow") == [10.0, 10.0, *[None] * 5]  # a share of 20 seconds
    assert times(results, "quick") == [1.0] * 7
    assert times(results, "baseline") == [5.0] * 7  # two rounds of 16 seconds, then five of 6


def test_everyone_has_the_least_number_of_rounds_and_nobody_more_after_the_time() -> None:
    clock = Clock()
    results = race([Lane("a", clock.work("a", 10.0))], CpuStopwatch(clock), rounds=100, least=3, seconds=1.0)
    assert times(results, "a") == [10.0] * 3
    results = race([Lane("a", clock.work("a", 1.0))], CpuStopwatch(clock), rounds=100, least=3, seconds=5.0)
    assert times(results, "a") == [1.0] * 5


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is half as quick in the second round, and the ratio is the same."""
    clock = Clock()
    lanes = [
        Lane("a", clock.work("a", 3.0, 6.0, 3.0)),
        Lane("baseline", clock.work("baseline", 2.0, 4.0, 1.5)),
    ]
    results = race(lanes, CpuStopwatch(clock), rounds=3)
    assert ratios(times(results, "a"), times(results, "baseline")) == Spread(1.5, 1.5, 2.0, 3)


def test_ratios_leave_out_rounds_without_both() -> None:
    assert ratios([4.0, None, 9.0], [2.0, 1.0, 3.0]) == Spread(2.0, 2.5, 3.0, 2)


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(1.0, 2.5, 10.0, 4)


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [((5.0,), 2), ((30.0, 1.0, 1.0), 3), ((30.0, 9.0, 1.0, 0.9), 4), (tuple(2.0**-i for i in range(20)), 10)],
)
def test_warming_up_goes_on_until_it_gets_no_quicker(seconds: tuple[float, ...], steps: int) -> None:
    clock = Clock()
    assert warm_up(Lane("a", clock.work("a", *seconds)), CpuStopwatch(clock)) == steps == len(clock.done)
