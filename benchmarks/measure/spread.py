"""Many measurements as three numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of ``count`` numbers."""

    min: float
    median: float
    max: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one number."""
    return Spread(min(values), median(values), max(values), len(values))


def ratios(values: Sequence[float | None], baseline: Sequence[float | None]) -> Spread:
    """Of value over baseline, round by round, over the rounds that have both."""
    return spread([v / b for v, b in zip(values, baseline, strict=True) if v is not None and b is not None])
