"""The one rate of each optimizer and task, found at the base batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from examples.scaling_study.rows import Row


@dataclass(frozen=True)
class Choice:
    """The rate that the study uses."""

    rate_index: int
    at_edge: bool
    """Whether a better one may lie beyond what was tried."""


def rate(middle: float, index: int) -> float:
    """The grid's rate: each is twice the one before it."""
    return middle * 2.0**index


def next_rates(rows: Iterable[Row], half_width: int, most: int) -> list[int]:
    """The places on the grid that are to be tried next; none where the search has ended.

    First ``-half_width`` to ``half_width``; while the best lies at an end, one more beyond it.

    Args:
        rows: The tuning runs of one optimizer on one task, with one seed.
        half_width: The grid at first.
        most: The farthest place.
    """
    scores = _scores(rows)
    missing = [index for index in range(-half_width, half_width + 1) if index not in scores]
    if missing:
        return missing
    best = _best(scores)
    beyond = best + 1 if best == max(scores) else best - 1 if best == min(scores) else None
    return [beyond] if beyond is not None and abs(beyond) <= most else []


def finalists(rows: Iterable[Row], count: int) -> list[int]:
    """The places with the lowest losses of a finished search, which other seeds are to decide between.

    Args:
        rows: The tuning runs of one optimizer on one task, with one seed.
        count: So many, or all.
    """
    scores = _scores(rows)
    return sorted(sorted(scores), key=lambda index: scores[index])[:count]


def choose(rows: Sequence[Row]) -> Choice:
    """The rate with the lowest loss on the tuning samples, mean over seeds; one of which a seed diverged never.

    Args:
        rows: The tuning runs of one optimizer on one task. Only places that were run with the most seeds can win.
    """
    seeds = Counter(row.rate_index for row in rows)
    most = max(seeds.values())
    best = _best(_scores(row for row in rows if seeds[row.rate_index] == most))
    return Choice(best, at_edge=best in (min(seeds), max(seeds)))


def _scores(rows: Iterable[Row]) -> dict[int, float]:
    losses: dict[int, list[float]] = {}
    for row in rows:
        losses.setdefault(row.rate_index, []).append(math.inf if row.diverged else row.tuning_loss)
    return {index: fmean(values) for index, values in losses.items()}


def _best(scores: dict[int, float]) -> int:
    """The lowest score's place; of equal ones (all may be infinite) the smallest rate's."""
    return min(sorted(scores), key=lambda index: scores[index])


def of(rows: Sequence[Row], task: str, optimizer: str) -> list[Row]:
    """The tuning rows of one optimizer on one task."""
    return [row for row in rows if (row.phase, row.task, row.optimizer) == ("tuning", task, optimizer)]
