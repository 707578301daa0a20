"""A contestant that is checked and ready to be timed, or the reason why not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.contestants.contestant import Contestant, NotAvailable
from benchmarks.equations.hyper import TIMED
from benchmarks.measure.check import Verdict, judge, trace
from benchmarks.measure.launches import kernels, triton_launches
from benchmarks.measure.memory import peak_extra_bytes, state_bytes
from benchmarks.measure.race import Lane, warm_up
from benchmarks.measure.stopwatch import Stopwatch
from benchmarks.measure.traffic import bytes_per_element, least_bytes_per_element
from benchmarks.parameter_sets import SETS
from benchmarks.report.result import MEASURED, MISSING, WRONG, Row
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Entrant:
    """A row so far, and what is to be timed for it, if anything."""

    row: Row
    lane: Lane | None = None


class Checks:
    """What became of everyone's check, which is the same whatever set of parameters is measured.

    Args:
        device: Where they step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[str, torch.dtype], tuple[Verdict, Verdict | None, bool]] = {}

    def of(self, contestant: Contestant, dtype: torch.dtype) -> tuple[Verdict, Verdict | None, bool]:
        """How far it is from what it claims, then from what it is thought to compute instead; whether it writes gradients."""
        key = (contestant.name, dtype)
        if key not in self._known:
            seen = trace(contestant.make, contestant.claims.rate, SETS["tiny"], self._device, dtype)
            verdict = judge(seen, contestant.claims)
            instead = judge(seen, contestant.instead) if contestant.instead and not verdict.right else None
            self._known[key] = verdict, instead, seen.writes_gradients
        return self._known[key]


def enter(
    contestant: Contestant,
    parameters: Sequence[nn.Parameter],
    prepare: Callable[[bool], Callable[[], object]],
    settings: Settings,
    stopwatch: Stopwatch,
    checked: Checks,
    *,
    always: bool = False,
) -> Entrant:
    """Check a contestant, make it for these parameters, warm it up, and measure what is not time.

    Args:
        contestant: Who.
        parameters: With gradients; everyone steps the same ones.
        prepare: Given whether its step changes the gradients, makes what is to be done before every step.
        settings: The run's.
        stopwatch: Measures.
        checked: Keeps what the check found.
        always: Whether it takes part in every round.
    """
    row = Row(
        contestant.name,
        contestant.package,
        contestant.traffic,
        contestant.fused,
        contestant.tests_finite,
        MISSING,
        note=contestant.note,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _enter(row, contestant, parameters, prepare, settings, stopwatch, checked, always)
    except NotAvailable as reason:
        said = f"not available: {reason}" if contestant.package == "lightning_scale" else str(reason)
        return Entrant(replace(row, reason=said))
    except Exception as error:  # whatever a package raises is its row's, and nobody else's
        said = " ".join(str(error).split())[:300]
        if contestant.fused and isinstance(error, ValueError):
            return Entrant(replace(row, reason=f"not available: {said}"))
        return Entrant(replace(row, reason=f"fails: {type(error).__name__}: {said}"))


def _enter(
    row: Row,
    contestant: Contestant,
    parameters: Sequence[nn.Parameter],
    prepare: Callable[[bool], Callable[[], object]],
    settings: Settings,
    stopwatch: Stopwatch,
    checked: Checks,
    always: bool,
) -> Entrant:
    device = torch.device(settings.device)
    dtype = parameters[0].dtype
    refuse(contestant, settings, dtype)
    verdict, instead, writes_gradients = checked.of(contestant, dtype)

    optimizer = contestant.make(parameters, TIMED * contestant.claims.rate)
    lane = Lane(row.name, _step(optimizer), prepare(writes_gradients), always)
    steps = warm_up(lane, stopwatch)
    elements = sum(p.numel() for p in parameters)
    form = settings.dtype if dtype == settings.torch_dtype else "float32"
    extra = peak_extra_bytes(lane.work, device)
    return Entrant(
        replace(
            row,
            status=MEASURED if verdict.right else WRONG,
            check=verdict,
            instead=instead,
            writes_gradients=writes_gradients,
            bytes_per_element=bytes_per_element(row.traffic, form, tests_finite=row.tests_finite),
            least_bytes_per_element=least_bytes_per_element(row.traffic, form),
            state_bytes_per_element=state_bytes(optimizer) / elements,
            extra_bytes_per_element=None if extra is None else extra / elements,
            kernels=kernels(lane.work, device),
            triton_launches=triton_launches(lane.work) if contestant.fused or device.type == "cuda" else None,
            warm_up_steps=steps,
        ),
        lane,
    )


def refuse(contestant: Contestant, settings: Settings, dtype: torch.dtype) -> None:
    """Raises NotAvailable for what would measure something else, or last for hours."""
    if dtype == torch.bfloat16 and not contestant.master:
        raise NotAvailable("keeps no float32 master weights of bfloat16 parameters")
    if contestant.fused and os.environ.get("TRITON_INTERPRET") == "1" and settings.parameters != "tiny":
        raise NotAvailable("Triton's interpreter (TRITON_INTERPRET=1) is for the set tiny alone")


def _step(optimizer: Any) -> Callable[[], object]:
    return lambda: optimizer.step()
