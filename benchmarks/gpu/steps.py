"""One step of every optimizer: the first, the time on the host and on the device, what is launched, what is waited for."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

import torch

from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.of_torch import BASELINE
from benchmarks.gpu.bench import Bench, Options, Step, each_apart, in_one_line, milliseconds
from benchmarks.measure.launches import compiled_kernels, launched, triton_launches
from benchmarks.measure.spread import ratios

NAMES = (BASELINE, "* fused=True", "LAMB* fused=True, no test")
_COLUMNS = ("first s", "compiled", "host ms", "new grads ms", "device ms", "x AdamW", "Triton", "waits")
_LISTED = 60  # Launches of a step, at most.


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: a row for each optimizer and below it, indented, its launches. 1 where one failed."""
    options = Options.parsed(arguments, __doc__, NAMES)
    print(_line("optimizer", _COLUMNS), flush=True)
    return 0 if each_apart(options, partial(measure, options)) else 1


def measure(options: Options, contestant: Contestant, seconds: float) -> bool:
    """Print an optimizer's row and launches; returns whether they could be had."""
    try:
        for line in _lines(Bench(options), contestant):
            print(line, flush=True)
    except Exception as error:  # Whatever a compiler or a driver throws is this row's.
        print(f"{contestant.name:34} FAILS: {in_one_line(error)}", flush=True)
        return False
    return True


def _lines(bench: Bench, contestant: Contestant) -> Iterator[str]:
    baseline = bench.optimizer(next(c for c in everyone() if c.name == BASELINE))
    bench.warm_up(baseline.step)
    began = time.perf_counter()
    optimizer = bench.optimizer(contestant)
    optimizer.step()
    bench.wait()
    first = time.perf_counter() - began
    compiled = compiled_kernels().total()
    step: Step = optimizer.step
    bench.warm_up(step)
    seconds = bench.on_device({BASELINE: baseline.step, "": step})
    values = (
        f"{first:.2f}",
        f"{compiled}",
        f"{1000 * bench.host(step):.3f}",
        f"{1000 * bench.host(step, partial(_move_gradients, bench)):.3f}",
        f"{milliseconds(seconds['']):.3f}",
        f"{ratios(seconds[''], seconds[BASELINE]).median:.2f}",
        f"{triton_launches(step)}",
        _waits(bench, step),
    )
    yield _line(contestant.name, values)
    yield from _listing(bench, step)


def _move_gradients(bench: Bench) -> None:
    """Gradients at new addresses, as after ``zero_grad()``."""
    before = [p.grad for p in bench.parameters]
    for p, gradient in zip(bench.parameters, before, strict=True):
        p.grad = None if gradient is None else gradient.clone()


def _waits(bench: Bench, step: Step) -> str:
    """Whether a step waits for the device, with gradients where they were and with new ones."""
    if bench.device.type != "cuda":
        return "not asked"
    for when, before in (("", bench.wait), ("with new gradients: ", partial(_move_gradients, bench))):
        before()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The mode is a prototype.
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            except RuntimeError as error:
                return f"{when}{in_one_line(error)[:100]}"
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return "none"


def _listing(bench: Bench, step: Step) -> Iterator[str]:
    """What runs on the device in a step, in order."""
    events = sorted(launched(step, bench.device) or [], key=lambda event: event.time_range.start)
    if not events:
        return
    times = [event.time_range.elapsed_us() for event in events]
    span = events[-1].time_range.end - events[0].time_range.start
    yield f"    {len(events)} on the device: {sum(times):.0f} us of work within {span:.0f} us, median {median(times):.1f} us"
    for event, microseconds in list(zip(events, times, strict=True))[:_LISTED]:
        yield f"    {microseconds:9.1f} us  {event.name[:110]}"


def _line(name: str, values: Sequence[str]) -> str:
    return f"{name:34}" + "".join(f"{value:>14}" for value in values[:-1]) + f"  {values[-1]}"


if __name__ == "__main__":
    sys.exit(main())
