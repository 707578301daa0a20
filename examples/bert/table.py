"""A run's stages as a table for the terminal."""

from __future__ import annotations

from statistics import fmean

from examples.bert.run_record import RunRecord, StepRow, ValidationRow

_HEADER = (
    "stage",
    "steps",
    "samples",
    "length",
    "batch",
    "peak lr",
    "train loss",
    "val loss",
    "val accuracy",
    "frequency guess",
)
_LAST_STEPS = 10  # one step's loss is noise


def stage_table(record: RunRecord) -> str:
    """One line a stage: its size, its highest rate, and where it ended (losses in nats).

    The training loss is the mean of the stage's last 10 steps; validation is the stage's last.
    """
    lines = [_HEADER, *(_line(*stage) for stage in record.stages())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _line(number: int, rows: list[StepRow], validations: list[ValidationRow]) -> tuple[str, ...]:
    last = validations[-1] if validations else None
    return (
        str(number),
        f"{len(rows):,}",
        f"{sum(row.batch_size for row in rows):,}",
        _span([row.sequence_length for row in rows]),
        _span([row.batch_size for row in rows]),
        f"{max(row.lr for row in rows):.3g}",
        f"{fmean(row.train_loss for row in rows[-_LAST_STEPS:]):.3f}",
        _number(last.val_loss if last else None, ".3f"),
        _number(last.val_accuracy if last else None, ".1%"),
        _number(last.frequency_guess if last else None, ".3f"),
    )


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
