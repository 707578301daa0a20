"""What must hold of the kernels on a real device: graphs that replay the same step, nothing compiled anew, other devices."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant
from benchmarks.equations.hyper import TIMED
from benchmarks.gpu.bench import Bench, Options, Step, each_apart, in_one_line, milliseconds
from benchmarks.measure.check import judge, trace
from benchmarks.measure.launches import compiled_kernels, triton_launches
from benchmarks.parameter_sets import SETS
from benchmarks.parameter_sets.filled import filled

NAMES = ("* fused=True",)
# Matrices of one chunk whatever the kernels' chunks are, and vectors: Triton specializes on 1 and on multiples of 16.
_OTHER_MODELS = {count: count * [(64, 64)] + (count - 1) * [(32,)] for count in (1, 13, 17)}
_OTHER_MODELS[16] = 16 * [(64, 64)] + 16 * [(32,)]
_ALLOWED = 1e-4  # Of the way that the weights have gone: what two orders of summation may differ by.


class Wrong(Exception):
    """What was found is not as it must be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: a row for each optimizer and check. 1 where one found something wrong."""
    options = Options.parsed(arguments, __doc__, NAMES)
    return 0 if each_apart(options, partial(check, options)) else 1


def check(options: Options, contestant: Contestant, seconds: float) -> bool:
    """Print a row for each check of an optimizer; returns whether nothing was wrong."""
    well = True
    for name, one in CHECKS.items():
        try:
            said = one(options, contestant)
        except Wrong as wrong:
            well, said = False, f"WRONG: {wrong}"
        except Exception as error:  # Whatever a compiler or a driver throws is this row's.
            well, said = False, f"FAILS: {in_one_line(error)}"
        print(f"{contestant.name:34} {name:14} {said}", flush=True)
    return well


def other_sizes(options: Options, contestant: Contestant) -> str:
    """After a step of a large model, steps of small ones compile nothing more."""

    def step(shapes: Sequence[tuple[int, ...]]) -> None:
        _optimizer(contestant, filled(shapes, options.device, torch.float32)).step()

    step(SETS[options.parameters])
    at_first = known = compiled_kernels()
    anew = []
    for count, shapes in _OTHER_MODELS.items():
        step(shapes)
        now = compiled_kernels()
        if now != known:
            anew.append(f"{', '.join(now - known)} for {count} matrices")
        known = now
    if anew:
        raise Wrong(f"compiled anew: {'; '.join(anew)}")
    return f"{at_first.total()} kernels compiled at first, none for other numbers of tensors"


def unasked(options: Options, contestant: Contestant) -> str:
    """What ``fused=None`` does and says."""
    name = contestant.name.replace("fused=True", "fused=None")
    parameters = filled(SETS["tiny"], options.device, torch.float32)
    optimizer = _optimizer(next(c for c in everyone() if c.name == name), parameters)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.step()
        launches = triton_launches(optimizer.step)
    messages = [str(warning.message) for warning in said]
    said_in_all = f"{launches} Triton launches a step; warnings: {messages or 'none'}"
    if options.device.type == "cuda" and not launches:
        raise Wrong(said_in_all)
    return said_in_all


def second_device(options: Options, contestant: Contestant) -> str:
    """Steps on a device that is not the current one."""
    device = options.device
    if device.type == "cuda":
        if torch.cuda.device_count() < 2:
            return "not tried: there is one device alone"
        device = torch.device("cuda", 1)
    verdict = judge(
        trace(contestant.make, contestant.claims.rate, SETS["tiny"], device, torch.float32), contestant.claims
    )
    if not verdict.right:
        raise Wrong(f"on {device} off by {verdict.error:.1g} from {verdict.rule}")
    return f"on {device} off by {verdict.error:.1g} from {verdict.rule}"


def graph(options: Options, contestant: Contestant) -> str:
    """A captured step, replayed, beside a twin that steps without; and how long a replay takes."""
    shapes = SETS["resnet50" if options.device.type == "cuda" else "tiny"]
    ours, theirs = (filled(shapes, options.device, torch.float32) for _ in range(2))
    start = [p.detach().clone() for p in ours]
    mine, twin = _optimizer(contestant, ours), _optimizer(contestant, theirs)
    captured_at = [p.grad for p in ours]

    def both(number: int, step: Step) -> float:
        """One step of each on the same new gradients, where the old ones are; returns how far apart they are then."""
        for parameters in (ours, theirs):
            _refill(parameters, number)
        step()
        twin.step()
        return _apart(ours, theirs, start)

    off = [both(0, partial(_on_a_side_stream, options.device, mine.step))]
    replay = _captured(mine.step, options.device)
    kept = _scribbled() if options.device.type == "cuda" else []
    off += [both(number, replay) for number in range(1, 4)]
    for p in ours:
        p.grad = torch.empty_like(p)
    off.append(both(4, mine.step))
    for p, gradient in zip(ours, captured_at, strict=True):
        p.grad = gradient
    off += [both(number, replay) for number in range(5, 7)]
    del kept

    names = ("a step", "replay 1", "replay 2", "replay 3", "a step elsewhere", "replay 4", "replay 5")
    wrong = [f"{name} {error:.1g}" for name, error in zip(names, off, strict=True) if not error <= _ALLOWED]
    if wrong:
        raise Wrong(f"off from the twin after {', '.join(wrong)}")
    bench = Bench(options)
    step = bench.optimizer(contestant).step
    _on_a_side_stream(options.device, step)
    seconds = bench.on_device({"replay": _captured(step, options.device)})["replay"]
    same = "the same bits as" if not any(off) else f"off by at most {max(off):.1g} from"
    return f"{milliseconds(seconds):.3f} ms a replay; five replays and a step between them: {same} steps without"


CHECKS: dict[str, Callable[[Options, Contestant], str]] = {
    "other sizes": other_sizes,
    "fused=None": unasked,
    "second device": second_device,
    "graph": graph,
}


def _optimizer(contestant: Contestant, parameters: Sequence[nn.Parameter]) -> Any:
    return contestant.make(parameters, TIMED * contestant.claims.rate)


def _refill(parameters: Sequence[nn.Parameter], number: int) -> None:
    """Other gradients in the same memory."""
    random = torch.Generator(parameters[0].device).manual_seed(1 + number)
    for p in parameters:
        assert p.grad is not None
        p.grad.normal_(0, 1e-3, generator=random)


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """The largest ‖difference‖ / ‖way so far‖ of the parameters."""
    errors = []
    for a, b, w in zip(ours, theirs, start, strict=True):
        off = float((a.detach().double() - b.detach().double()).norm())
        way = float((b.detach().double() - w.double()).norm())
        errors.append(0.0 if off == 0 else off / max(way, 1e-30))
    return float(torch.tensor(errors).max())  # A NaN among them is the largest.


def _on_a_side_stream(device: torch.device, step: Step) -> None:
    """A step as it has to come before a capture. On a CPU any step."""
    if device.type != "cuda":
        step()
        return
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)


def _captured(step: Step, device: torch.device) -> Step:
    """A step as a CUDA graph, which takes it when it is called and not before. On a CPU the step itself stands in."""
    if device.type != "cuda":
        return step
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def _scribbled() -> list[Tensor]:
    """Pinned memory of all sizes, written over: what a graph's copies still read must not be free."""
    return [torch.full((1 << size,), -1, dtype=torch.int8).pin_memory() for size in range(4, 21) for _ in range(8)]


if __name__ == "__main__":
    sys.exit(main())
