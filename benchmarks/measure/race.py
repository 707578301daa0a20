"""Everyone in turn, round after round, so that a machine that slows down or speeds up does so for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.measure.stopwatch import Sample, Stopwatch

Results = dict[str, list["Sample | None"]]
"""By lane, one entry a round; None where it sat out."""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Lane:
    """One who takes part.

    Args:
        name: Its own.
        work: What is timed.
        before: What is done first, outside of the time.
        always: Whether it never sits out: what others are compared with.
    """

    name: str
    work: Callable[[], object]
    before: Callable[[], object] = _nothing
    always: bool = False


def warm_up(lane: Lane, stopwatch: Stopwatch, most: int = 10) -> int:
    """Work until it no longer gets quicker by a third, as it does once everything is compiled; returns how often."""
    least = float("inf")
    for count in range(1, most + 1):
        lane.before()
        seconds = stopwatch.measure(lane.work).seconds
        if seconds > 0.7 * least:
            return count
        least = min(least, seconds)
    return most


def race(
    lanes: Sequence[Lane], stopwatch: Stopwatch, *, rounds: int, least: int = 3, seconds: float = float("inf")
) -> Results:
    """Measure every lane once a round, in another order each round.

    Args:
        lanes: Who takes part.
        stopwatch: Measures.
        rounds: How many rounds at most.
        least: How many rounds everyone takes part in, however long it takes.
        seconds: For all together; each has an equal share, and sits out once it has used it. No round begins after them.
    """
    share = seconds / len(lanes)
    spent = dict.fromkeys((lane.name for lane in lanes), 0.0)
    results: Results = {lane.name: [] for lane in lanes}
    start = stopwatch.now()
    for number in range(rounds):
        if number >= least and stopwatch.now() - start >= seconds:
            break
        inside = {lane.name for lane in lanes if number < least or spent[lane.name] < share}
        if not inside:
            break
        for lane in Random(number).sample(list(lanes), len(lanes)):
            if lane.name not in inside and not lane.always:
                results[lane.name].append(None)
                continue
            lane.before()
            began = stopwatch.now()
            results[lane.name].append(stopwatch.measure(lane.work))
            spent[lane.name] += stopwatch.now() - began
    return results
