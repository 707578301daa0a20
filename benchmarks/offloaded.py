"""Measure an offloaded step of ZeRO-2: ``python -m benchmarks.offloaded``. See `README.md` in this folder.

A rank of ZeRO-2 whose optimizer is offloaded steps one flat float32 tensor on the CPU, in which many layers lie. LAMB is told
where (`attach_layouts`), tests the gradients (`decide`) and sums its norms over the ranks, of which there is one here. Beside
it, on tensors of the same size: DeepSpeed's own CPU Adam, where it can be compiled here, and torch's fused AdamW.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestants.contestant import NotAvailable
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS, WEIGHT_DECAY
from benchmarks.measure.environment import cpu_model
from benchmarks.measure.others import Others
from benchmarks.measure.race import Lane, race, warm_up
from benchmarks.measure.spread import ratios, spread
from benchmarks.measure.stopwatch import CpuStopwatch
from benchmarks.parameter_sets import SETS, Shape
from benchmarks.report.table import markdown_table
from lightning_scale.optim import LAMB, LAMB8bit
from lightning_scale.optim.layout import LayerInfo
from lightning_scale.strategies.zero.flat import slice_layout

Step = Callable[[], object]
BASELINE = "torch AdamW fused"
_LR = 1e-6


def _alone(values: Tensor) -> None:
    """Sums over the one rank that there is."""


def offloaded(kind: type[LAMB], flat: nn.Parameter, shapes: Sequence[Shape]) -> Step:
    """A step of a layer-wise optimizer as the strategy takes it, on a flat tensor in which layers of these shapes lie."""
    numels = list(map(prod, shapes))
    layers = [LayerInfo(f"layer {i}", n, len(s)) for i, (n, s) in enumerate(zip(numels, shapes, strict=True))]
    layout = slice_layout(layers, list(accumulate(numels[:-1], initial=0)), 0, flat.numel(), _alone)
    optimizer = kind([flat], lr=_LR, betas=BETAS, eps=EPS["LAMB"], weight_decay=WEIGHT_DECAY)
    optimizer.attach_layouts({flat: layout})
    optimizer.init_state(optimizer.param_groups[0], flat)

    def step() -> None:
        assert flat.grad is not None
        optimizer.decide([(layout, [flat.grad])])
        optimizer.step()

    return step


def deepspeed_adam(flat: nn.Parameter, threads: int) -> Step:
    """A step of DeepSpeed's Adam for CPUs, which g++ and ninja compile when it is used first.

    Raises:
        NotAvailable: with the reason.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # what it is linked with reads this when it is loaded
    # ninja may be installed beside this Python alone.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    adam = load("deepspeed.ops.adam").DeepSpeedCPUAdam
    try:
        step: Step = adam([flat], lr=_LR, betas=BETAS, eps=EPS["AdamW"], weight_decay=WEIGHT_DECAY).step
    except Exception as error:  # whatever a compiler says
        raise NotAvailable(f"cannot be compiled here: {' '.join(str(error).split())[:300]}") from error
    return step


def steps(shapes: Sequence[Shape], threads: int) -> tuple[dict[str, Step], dict[str, str]]:
    """By name the steps, each on a flat tensor of its own; and why others are missing."""
    elements = sum(map(prod, shapes))

    def flat() -> nn.Parameter:
        random = torch.Generator().manual_seed(0)
        p = nn.Parameter(0.02 * torch.randn(elements, generator=random))
        p.grad = 1e-3 * torch.randn(elements, generator=random)
        return p

    found: dict[str, Step] = {}
    missing: dict[str, str] = {}
    adamw: Any = torch.optim.AdamW([flat()], lr=_LR, betas=BETAS, eps=EPS["AdamW"], fused=True)
    found[BASELINE] = adamw.step
    try:
        found["DeepSpeedCPUAdam"] = deepspeed_adam(flat(), threads)
    except NotAvailable as reason:
        missing["DeepSpeedCPUAdam"] = str(reason)
    found["LAMB offloaded"] = offloaded(LAMB, flat(), shapes)
    found["LAMB8bit offloaded"] = offloaded(LAMB8bit, flat(), shapes)
    return found, missing


def report(found: dict[str, Step], rounds: int, say: Callable[[str], object]) -> str:
    """Take the steps in turn, and give their times as a table."""
    stopwatch = CpuStopwatch()
    lanes = [Lane(name, step, always=True) for name, step in found.items()]
    for lane in lanes:
        warm_up(lane, stopwatch)
        say(f"{lane.name}: ready")
    others = Others()
    results = race(lanes, stopwatch, rounds=rounds)
    share = others.share()
    taken = {name: [None if s is None else s.seconds for s in samples] for name, samples in results.items()}
    beside = [name for name in (BASELINE, "DeepSpeedCPUAdam") if name in found]
    rows = []
    for name, seconds in taken.items():
        row = [name, f"{1e3 * spread([s for s in seconds if s is not None]).median:.1f}"]
        for other in beside:
            ratio = ratios(seconds, taken[other])
            row.append(f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})")
        rows.append(row)
    disturbed = "" if share is None else f"\n\nOthers used {share:.0%} of the cores' time meanwhile."
    return markdown_table(("step", "ms", *(f"× {name} (min–max)" for name in beside)), rows) + disturbed


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.offloaded", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--set", choices=SETS, default="cpu", help="of parameters, which layers are like (%(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    shapes = SETS[given.set]
    found, missing = steps(shapes, given.threads)
    size = sum(map(prod, shapes))
    print(
        f"{cpu_model()}, {given.threads} threads: one flat float32 tensor of {size:,} elements, {len(shapes):,} layers\n"
    )
    print(report(found, given.rounds, lambda line: print(line, file=sys.stderr, flush=True)))
    for name, reason in missing.items():
        print(f"\n{name} is missing: {reason}. Only torch's fused AdamW stands beside.")


if __name__ == "__main__":
    main()
