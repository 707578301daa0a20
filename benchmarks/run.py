"""One run: everyone checked, then timed in turn on the same parameters."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase

import torch
from torch import nn

from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.of_torch import BASELINE
from benchmarks.entrant import Checks, Entrant, enter
from benchmarks.measure.environment import environment, gpu_clocks
from benchmarks.measure.others import Others
from benchmarks.measure.race import Lane, Results, race, warm_up
from benchmarks.measure.spread import Spread, ratios, spread
from benchmarks.measure.stopwatch import Stopwatch, stopwatch_for
from benchmarks.parameter_sets import SETS
from benchmarks.parameter_sets.filled import filled
from benchmarks.report.result import Report, Row, Run
from benchmarks.report.targets import compare
from benchmarks.settings import Settings

COPY = "copy"


def run(
    settings: Settings | Sequence[Settings],
    contestants: Sequence[Contestant] | None = None,
    stopwatch: Stopwatch | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Report:
    """Measure, and report.

    Args:
        settings: What is asked for; or of several sets of parameters, which are measured one after the other on one device.
        contestants: Who; all where not given. The baseline takes part in any case.
        stopwatch: The device's where not given.
        say: Told how far it is.
    """
    asked = [settings] if isinstance(settings, Settings) else list(settings)
    device = torch.device(asked[0].device)
    stopwatch = stopwatch or stopwatch_for(device)
    who, checked = everyone() if contestants is None else contestants, Checks(device)
    with _threads(asked[0].threads):
        where = environment(device, [c.package for c in everyone()])
        runs = []
        for one in asked:
            assert (one.device, one.threads) == (asked[0].device, asked[0].threads)
            runs.append(_run(one, _chosen(who, one.only), checked, stopwatch, say))
            gc.collect()  # everyone's state
        if device.type == "cuda":
            where["driver_and_clocks_after"] = gpu_clocks()
    return Report(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=where,
        baseline=BASELINE,
        runs=runs,
        targets=compare(runs, where["avx512"]),
    )


def _run(
    settings: Settings,
    chosen: Sequence[Contestant],
    checked: Checks,
    stopwatch: Stopwatch,
    say: Callable[[str], object],
) -> Run:
    """On one set of parameters."""
    device = torch.device(settings.device)
    shapes, dtype = SETS[settings.parameters], settings.torch_dtype
    parameters = filled(shapes, device, dtype)
    plain = parameters if dtype == torch.float32 else filled(shapes, device, torch.float32)
    before = _Before(settings)

    say(f"set {settings.parameters}")
    entrants: list[Entrant] = []
    for contestant in chosen:
        baseline = contestant.name == BASELINE
        own = plain if baseline else parameters
        ready = enter(contestant, own, before.of(own), settings, stopwatch, checked, always=baseline)
        say(f"{contestant.name}: {ready.row.reason or _checked(ready.row)}")
        entrants.append(ready)
    lanes = [_copy_lane(settings), *(e.lane for e in entrants if e.lane is not None)]
    warm_up(lanes[0], stopwatch)
    say(f"{len(lanes)} in turn, about {settings.seconds:.0f} s or {settings.rounds} rounds")
    others = Others()
    results = race(lanes, stopwatch, rounds=settings.rounds, least=settings.least, seconds=settings.seconds)
    share = others.share()

    elements = sum(p.numel() for p in parameters)
    copied = spread([2 * settings.copy_mib * 2**20 / s for s in _seconds(results, COPY) if s is not None])
    return Run(
        settings=asdict(settings),
        elements=elements,
        tensors=len(parameters),
        copy_bytes_per_second=copied,
        others_share_of_cores=share,
        rows=[_timed(entrant.row, results, copied, elements) for entrant in entrants],
    )


def _chosen(contestants: Sequence[Contestant], only: Sequence[str]) -> list[Contestant]:
    """Those whose names match, and the baseline, first."""
    matching = [c for c in contestants if not only or any(fnmatchcase(c.name, pattern) for pattern in only)]
    baseline = next(c for c in everyone() if c.name == BASELINE)
    return [baseline, *(c for c in matching if c.name != BASELINE)]


def _checked(row: Row) -> str:
    return f"off by {row.check.error:.1g} from {row.check.rule}" if row.check else ""


def _timed(row: Row, results: Results, copied: Spread, elements: int) -> Row:
    if row.name not in results:
        return row
    assert row.bytes_per_element is not None
    seconds = _seconds(results, row.name)
    taken = spread([s for s in seconds if s is not None])
    host = [s.host_seconds for s in results[row.name] if s is not None and s.host_seconds is not None]
    rate = row.bytes_per_element * elements / taken.median
    return replace(
        row,
        seconds=taken,
        ratio=ratios(seconds, _seconds(results, BASELINE)),
        host_seconds=spread(host) if host else None,
        bytes_per_second=rate,
        share_of_copy=rate / copied.median,
    )


def _seconds(results: Results, name: str) -> list[float | None]:
    return [None if sample is None else sample.seconds for sample in results[name]]


class _Before:
    """What is done before every step: gradients put right, caches filled with something else."""

    def __init__(self, settings: Settings) -> None:
        device = torch.device(settings.device)
        self._flush = [torch.ones(settings.flush_mib << 18, device=device) for _ in range(2)]

    def of(self, parameters: Sequence[nn.Parameter]) -> Callable[[bool], Callable[[], object]]:
        """Made for these parameters, given whether a step changes their gradients."""

        def prepare(writes_gradients: bool) -> Callable[[], object]:
            kept = [p.grad.clone() for p in parameters if p.grad is not None] if writes_gradients else []

            def before() -> None:
                if kept:
                    torch._foreach_copy_([p.grad for p in parameters if p.grad is not None], kept)
                if self._flush[0].numel():
                    self._flush[0].copy_(self._flush[1])

            return before

        return prepare


def _copy_lane(settings: Settings) -> Lane:
    device = torch.device(settings.device)
    target, source = (torch.rand(settings.copy_mib << 18, device=device) for _ in range(2))
    return Lane(COPY, lambda: target.copy_(source), always=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
