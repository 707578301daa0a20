"""What the study has found, one line a run, in a file that survives a kill at any time."""

from __future__ import annotations

import csv
import os
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

Phase = Literal["tuning", "study"]


@dataclass(frozen=True)
class Job:
    """One run to do."""

    task: str
    optimizer: str
    phase: Phase
    k: int
    """The batch as a multiple of the task's base batch."""
    rate_index: int
    """Place on the grid of rates: 0 is the recipe's middle rate, one more is twice as much."""
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came out of one run; losses in nats, accuracies from 0 to 1."""

    steps: int
    train_loss: float
    """Mean of the last twentieth of the steps."""
    tuning_loss: float
    tuning_accuracy: float
    test_loss: float
    test_accuracy: float
    diverged: bool
    """A loss at the end is not finite, or training ended no better than equal probabilities for all classes."""
    seconds: float
    """Of this process's processor time."""


@dataclass(frozen=True)
class RatedJob(Job):
    """A job in numbers."""

    batch_size: int
    rate: float
    """At the base batch; the run's own peak follows from it and k."""


@dataclass(frozen=True)
class Row(Outcome, RatedJob):
    """One run that was done; a line of ``rows.csv``, the job first."""

    @property
    def job(self) -> Job:
        """What was asked for."""
        return Job(self.task, self.optimizer, self.phase, self.k, self.rate_index, self.seed)


_COLUMNS = [f.name for f in fields(Row)]
_KINDS: dict[str, Any] = get_type_hints(Row)


class RowFile:
    """``rows.csv``, which only grows.

    A line counts when its end is written. A last line without an end, which a kill or a full disk left, is cut off.

    Args:
        path: The file; it is made with its header where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        if not whole:
            path.write_text(",".join(_COLUMNS) + "\n")
        elif len(whole) < len(written):
            os.truncate(path, len(whole))

    def read(self) -> list[Row]:
        """All rows, in the order they were written."""
        with self.path.open(newline="") as file:
            return [_parsed(line) for line in csv.DictReader(file)]

    def append(self, row: Row) -> None:
        """Write a row, to the disk itself."""
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(astuple(row))
            file.flush()
            os.fsync(file.fileno())


def _parsed(line: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for name in _COLUMNS:
        kind = _KINDS[name]
        values[name] = (
            line[name] == "True" if kind is bool else kind(line[name]) if kind in (int, float) else line[name]
        )
    return Row(**values)
