"""What a run was like, step by step, in a form that a checkpoint can hold."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

XAxis = Literal["steps", "samples"]
"""What a run is drawn over."""


@dataclass
class StepRow:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    stage: int
    """From 1."""
    samples: int
    """Samples of all ranks consumed since the run began, this step's included."""
    sequence_length: int
    """Tokens in a sample."""
    batch_size: int
    """Samples of all ranks in this step."""
    lr: float
    """The first parameter group's rate in this step."""
    train_loss: float
    """Mean over all items of the step's micro-batches and ranks, in nats."""
    trust_ratio_min: float | None = None
    """Smallest ratio of the layers that adapt; None at steps that were not looked at."""
    trust_ratio_median: float | None = None
    trust_ratio_max: float | None = None


@dataclass
class ValidationRow:
    """One pass over the held-out data."""

    step: int
    stage: int
    val_loss: float
    """In nats."""
    val_accuracy: float | None = None
    val_perplexity: float | None = None
    frequency_guess: float | None = None
    """The loss of guessing by word frequency on the same tokens, in nats."""


@dataclass
class RunRecord:
    """The rows of a run, oldest first."""

    steps: list[StepRow] = field(default_factory=list)
    validations: list[ValidationRow] = field(default_factory=list)

    def add_validation(self, row: ValidationRow) -> None:
        """Add a row; one for the same step takes the place of the last."""
        if self.validations and self.validations[-1].step == row.step:
            self.validations.pop()
        self.validations.append(row)

    def stages(self) -> Iterator[tuple[int, list[StepRow], list[ValidationRow]]]:
        """Each stage's number and its rows."""
        for number, rows in groupby(self.steps, key=lambda row: row.stage):
            yield number, list(rows), [row for row in self.validations if row.stage == number]

    def write_csv(self, path: Path) -> None:
        """One line a step, validation in further columns where there was one after that step."""
        after = {row.step: asdict(row) for row in self.validations}
        validation_columns = [f.name for f in fields(ValidationRow) if f.name not in ("step", "stage")]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(StepRow)] + validation_columns, extrasaction="ignore")
            writer.writeheader()
            for row in self.steps:
                writer.writerow({**after.get(row.step, {}), **asdict(row)})

    def state_dict(self) -> dict[str, Any]:
        """By column, for a long run's sake: {"steps": {column: values}, "validations": {column: values}}."""
        return {"steps": _columns(StepRow, self.steps), "validations": _columns(ValidationRow, self.validations)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the rows of a checkpoint in place of the present ones."""
        self.steps = [StepRow(**row) for row in _rows(state_dict["steps"])]
        self.validations = [ValidationRow(**row) for row in _rows(state_dict["validations"])]


def _columns(kind: type, rows: list[Any]) -> dict[str, list[Any]]:
    return {f.name: [getattr(row, f.name) for row in rows] for f in fields(kind)}


def _rows(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
