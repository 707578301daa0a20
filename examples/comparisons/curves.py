"""The courses of runs, as their reports have them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_LAST_SHARE = 0.05  # one step's loss is noise
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One run, a number for each optimizer step."""

    steps: Array
    samples: Array
    """Consumed, this step's included."""
    stage: Array
    """From 1."""
    train_loss: Array
    """In nats."""
    ratio_least: Array
    """The smallest trust ratio; NaN where none was looked at."""
    ratio_most: Array
    validation: dict[int, float]
    """Loss on the held-out samples after so many steps."""

    def last_loss(self) -> float:
        """Mean training loss of the last twentieth of the steps."""
        return float(self.train_loss[-max(1, round(_LAST_SHARE * len(self.steps))) :].mean())

    def validation_after_stage(self, stage: int) -> float | None:
        """The held-out loss at a stage's last step; None where it was not looked at."""
        return self.validation.get(int(self.steps[self.stage == stage][-1]))

    def stages(self) -> list[int]:
        """Their numbers."""
        return sorted({int(stage) for stage in self.stage})


def read(path: Path) -> Curve:
    """A run's ``report.csv``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> Array:
        return np.array([float(row[name] or "nan") for row in rows])

    validation = {int(row["step"]): float(row["val_loss"]) for row in rows if row["val_loss"]}
    return Curve(
        column("step"),
        column("samples"),
        column("stage"),
        column("train_loss"),
        column("trust_ratio_min"),
        column("trust_ratio_max"),
        validation,
    )


def smooth(values: Array, over: int) -> Array:
    """Each value's mean with those before it, ``over`` at most."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - over)
    means: Array = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def distance(curve: Curve, other: Curve) -> Array:
    """How far the training losses are from each other, step by step."""
    far: Array = np.abs(curve.train_loss - other.train_loss)
    return far


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1); None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
