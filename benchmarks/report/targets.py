"""What is to be reached: the time of a step over that of torch's fused float32 AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.report.result import MEASURED, Row, TargetRow
from benchmarks.settings import Settings

THREADS = 2
"""That the targets on a CPU are for."""

TARGETS = [
    TargetRow("cuda", "bert-large", "LAMB", must=1.45, goal=1.25),
    TargetRow("cuda", "bert-large", "LARS", must=1.05, goal=0.85),
    TargetRow("cuda", "bert-large", "LAMB8bit", must=1.0, goal=0.75),
    TargetRow("cuda", "bert-large", "LARS8bit", must=0.85, goal=0.6),
    TargetRow("cuda", "bert-large", "AdamW8bit", must=0.8, goal=0.65),
    TargetRow("cpu", "cpu", "LAMB", must=2.0, goal=1.5),
    TargetRow("cpu", "cpu", "LARS", must=1.5, goal=1.2),
    TargetRow("cpu", "cpu", "LAMB8bit", must=8.0, goal=4.0),
]


def compare(settings: Settings, rows: Sequence[Row]) -> list[TargetRow]:
    """The targets, with what this run measured for those that it is about."""
    return [_compare(target, rows) if _concerns(target, settings) else target for target in TARGETS]


def _concerns(target: TargetRow, settings: Settings) -> bool:
    return (
        (target.device, target.parameters) == (settings.device, settings.parameters)
        and settings.dtype == "float32"
        and (target.device != "cpu" or settings.threads == THREADS)
    )


def _compare(target: TargetRow, rows: Sequence[Row]) -> TargetRow:
    right = [
        (row.ratio.median, row.name)
        for row in rows
        if row.package == "lightning_scale"
        and row.traffic == target.optimizer
        and row.tests_finite
        and row.status == MEASURED
        and row.ratio is not None
    ]
    if not right:
        return target
    measured, by = min(right)
    return replace(target, measured=measured, by=by)
