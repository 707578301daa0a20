"""What is to be reached: the time of a step over that of torch's fused float32 AdamW, and seconds of a first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.report.result import MEASURED, Run, TargetRow
from lightning_scale.optim.registry import REGISTRY

THREADS = 2
"""That the targets on a CPU are for."""

_CUDA = [
    TargetRow("cuda", "bert-large", "LAMB", must=1.45, goal=1.25),
    TargetRow("cuda", "bert-large", "LARS", must=1.05, goal=0.85),
    TargetRow("cuda", "bert-large", "LAMB8bit", must=1.0, goal=0.75),
    TargetRow("cuda", "bert-large", "LARS8bit", must=0.85, goal=0.6),
    TargetRow("cuda", "bert-large", "AdamW8bit", must=0.8, goal=0.65),
]
_CPU = [
    TargetRow("cpu", "cpu", "LAMB", must=2.0, goal=1.6),
    TargetRow("cpu", "cpu", "LARS", must=1.3, goal=1.1),
    TargetRow("cpu", "cpu", "LARS on the momentum", must=1.7, goal=1.4),
    TargetRow("cpu", "cpu", "LAMB8bit", must=3.5, goal=2.5),
    *(
        TargetRow("cpu", "cpu", entry.name, must=2.5, goal=1.7)
        for entry in REGISTRY.values()
        if entry.eight_bit and entry.name != "LAMB8bit"
    ),
    TargetRow("cpu", "small", "LAMB", must=2.0, goal=1.5),
    TargetRow("cpu", "small", "LARS", must=1.4, goal=1.0),
]
_MANY = [TargetRow("cpu", "many", "LAMB", must=0.5, goal=0.15)]

QUIET = 0.05
"""The share of the cores' time that others may use while a target is measured: threads that wait for each other, as torch's
do, are slowed down by far more than what others take, and every ratio to them looks good."""
FIRST_STEP = {"nothing cached": (8.0, 4.0), "cached": (1.0, 0.5)}
"""Seconds of LAMB's first step in a fresh process, on a CPU: must and goal, by what numba finds compiled."""


def targets(avx512: bool) -> list[TargetRow]:
    """All of them.

    Args:
        avx512: Whether the processor has AVX-512. Without it, what is in 8 bits may take longer where memory does not keep it
            waiting.
    """
    must, goal, note = (3.5, 2.5, "with AVX-512") if avx512 else (5.0, 3.5, "without AVX-512")
    return [*_CUDA, *_CPU, TargetRow("cpu", "small", "LAMB8bit", must=must, goal=goal, note=note), *_MANY]


def compare(runs: Sequence[Run], avx512: bool) -> list[TargetRow]:
    """The targets, with what these runs measured for those that they are about."""
    found = targets(avx512)
    for run in runs:
        found = [_compare(target, run) if _concerns(target, run.settings) else target for target in found]
    return found


def _concerns(target: TargetRow, settings: dict[str, Any]) -> bool:
    return (
        (target.device, target.parameters) == (settings["device"], settings["parameters"])
        and settings["dtype"] == "float32"
        and (target.device != "cpu" or settings["threads"] == THREADS)
    )


def _compare(target: TargetRow, run: Run) -> TargetRow:
    right = [
        (row.ratio.median, row.name)
        for row in run.rows
        if row.package == "lightning_scale"
        and row.traffic == target.optimizer
        and row.tests_finite
        and row.status == MEASURED
        and row.ratio is not None
    ]
    if not right:
        return target
    measured, by = min(right)
    disturbed = target.device == "cpu" and (run.others_share_of_cores or 0.0) > QUIET
    return replace(target, measured=measured, by=by, disturbed=disturbed)
