"""A run's schedule as a table of the steps that are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_scale.plan.steps import PlannedStep, Schedule
from lightning_scale.plan.text import count, table

_ROWS = 12
_HEADER = ("step", "samples", "tokens", "rate", "batch", "micro-batches", "micro-batch", "length", "")
_COLUMNS = ("step", "samples", "tokens", "lr", "batch_size", "micro_batches", "micro_batch_size", "sequence_length")


def schedule_table(schedule: Schedule) -> str:
    """One line a step: the first, the last, those around every mark, and some at even distances between them."""
    said: dict[int, list[str]] = {}
    for mark in schedule.marks:
        said.setdefault(mark.step + 1, []).append(mark.text)
    steps = schedule.steps
    shown = {0, len(steps) - 1, *(i * (len(steps) - 1) // (_ROWS - 1) for i in range(_ROWS))}
    for number in said:  # the last step before a mark, and the first after it
        shown |= {min(max(number - 2, 0), len(steps) - 1), min(number - 1, len(steps) - 1)}
    left = len(_COLUMNS)
    rows = [_row(steps[i], said.get(steps[i].step, ())) for i in sorted(shown)]
    if steps[-1].step + 1 in said:
        rows.append(("", *[""] * (left - 1), ", ".join(said[steps[-1].step + 1])))
    return table((_HEADER, *rows), left_from=left)


def totals_line(schedule: Schedule) -> str:
    """What the run consumes, as a sentence."""
    totals = schedule.totals
    parts = [f"{totals.steps:,} steps", f"{totals.samples:,} samples"]
    if totals.tokens is not None:
        parts.append(f"{totals.tokens:,} tokens")
    parts.append(f"{totals.epochs:.4g} epochs" if totals.epochs is not None else "epochs not known")
    return f"In all: {', '.join(parts)}, on {schedule.rules.world_size:,} rank{'s' * (schedule.rules.world_size > 1)}."


def as_json(schedule: Schedule) -> dict[str, Any]:
    """The schedule as JSON takes it: totals, marks, and every step's values in columns."""
    totals = schedule.totals
    return {
        "world_size": schedule.rules.world_size,
        "totals": totals.__dict__,
        "marks": [mark.__dict__ for mark in schedule.marks],
        "steps": {name: [getattr(step, name) for step in schedule.steps] for name in PlannedStep._fields},
    }


def _row(step: PlannedStep, said: Sequence[str]) -> tuple[str, ...]:
    values = [count(getattr(step, name)) for name in _COLUMNS]
    values[_COLUMNS.index("lr")] = f"{step.lr:.4g}"
    return (*values, ", ".join(said))
