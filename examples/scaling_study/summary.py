"""The rows as cells: one for each task, optimizer and batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from examples.scaling_study import tuning
from examples.scaling_study.rows import Row
from examples.scaling_study.settings import Settings


@dataclass(frozen=True)
class Cell:
    """The runs of one optimizer at one batch, on one task."""

    batch_size: int
    runs: int
    diverged: int
    mean: float | None
    """Of the test accuracies of the runs that did not diverge; None where all did."""
    spread: float | None
    """Their standard deviation (n - 1); None for fewer than two."""


@dataclass(frozen=True)
class Line:
    """One optimizer on one task."""

    task: str
    optimizer: str
    rate: float
    """Chosen at the base batch."""
    at_edge: bool
    """Whether the search for it ended at the last rate that it may try."""
    tried: tuple[float, ...]
    """All rates of the search, ascending."""
    cells: dict[int, Cell]
    """By k."""


def summarize(settings: Settings, rows: Sequence[Row]) -> list[Line]:
    """The lines that have runs of the study, in the settings' order."""
    lines = []
    for task in settings.tasks:
        for optimizer in settings.optimizers:
            searched = tuning.of(rows, task, optimizer)
            mine = [row for row in rows if (row.phase, row.task, row.optimizer) == ("study", task, optimizer)]
            if not mine:
                continue
            choice = tuning.choose(searched)
            tried = tuple(sorted({row.rate for row in searched}))
            cells = {k: cell([row for row in mine if row.k == k]) for k in sorted({row.k for row in mine})}
            lines.append(Line(task, optimizer, mine[0].rate, choice.at_edge, tried, cells))
    return lines


def cell(rows: Sequence[Row]) -> Cell:
    """The runs of one optimizer at one batch."""
    accuracies = [row.test_accuracy for row in rows if not row.diverged]
    return Cell(
        rows[0].batch_size,
        len(rows),
        len(rows) - len(accuracies),
        fmean(accuracies) if accuracies else None,
        stdev(accuracies) if len(accuracies) > 1 else None,
    )


def best(cells: Iterable[Cell]) -> Cell | None:
    """The one with the highest mean, of those in which no run diverged."""
    whole = [c for c in cells if c.mean is not None and not c.diverged]
    return max(whole, key=lambda c: c.mean or 0.0, default=None)
