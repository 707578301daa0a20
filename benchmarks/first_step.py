"""Measure the first step of a fresh process: ``python -m benchmarks.first_step``. See `README.md` in this folder.

numba compiles a kernel when it is called first, and keeps what it has compiled in a folder. Each first step is one of LAMB in
a new process: with an empty folder, and with a folder in which a process before it has left all that is needed. The step
imports numba, too; the imports of torch and of this package come before the time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.measure.environment import cpu_model
from benchmarks.measure.spread import Spread, spread
from benchmarks.parameter_sets import SETS
from benchmarks.parameter_sets.filled import filled
from benchmarks.report.table import markdown_table
from benchmarks.report.targets import FIRST_STEP

_ROOT = Path(__file__).resolve().parents[1]
_CHILD = "from benchmarks.first_step import once; print(once({name!r}, {threads}))"
CASES = ("nothing cached", "cached")


def once(name: str, threads: int) -> float:
    """The seconds of the first step of LAMB in this process, on a set of parameters."""
    from lightning_scale.optim import LAMB

    torch.set_num_threads(threads)
    optimizer = LAMB(filled(SETS[name], torch.device("cpu"), torch.float32), lr=1e-6)
    began = perf_counter()
    optimizer.step()
    return perf_counter() - began


def measure(name: str, times: int, threads: int) -> dict[str, Spread]:
    """By case, the seconds of as many first steps; the cases take turns."""
    found: dict[str, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="first-step-") as work:
        kept = Path(work) / "kept"
        _fresh(name, threads, kept)
        for number in range(times):
            empty = Path(work) / f"empty-{number}"
            for case, folder in zip(CASES, (empty, kept), strict=True):
                found[case].append(_fresh(name, threads, folder))
    return {case: spread(seconds) for case, seconds in found.items()}


def _fresh(name: str, threads: int, cache: Path) -> float:
    """In a process of its own.

    Raises:
        RuntimeError: where numba keeps nothing in the folder that it is given, so that neither case is what its name says.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(name=name, threads=threads)],
        cwd=_ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"a first step failed: {done.stderr[-2000:]}")
    if not any(cache.rglob("*.nbi")):
        raise RuntimeError(f"numba has kept nothing in {cache}: is it installed?")
    return float(done.stdout.split()[-1])


def report(found: dict[str, Spread]) -> str:
    """As a table, beside the targets."""
    rows = []
    for case, seconds in found.items():
        must, goal = FIRST_STEP[case]
        reached = "goal" if seconds.median <= goal else "must" if seconds.median <= must else "no"
        measured = f"{seconds.median:.2f} ({seconds.min:.2f}–{seconds.max:.2f})"
        rows.append([case, measured, str(seconds.count), f"{must:g}", f"{goal:g}", reached])
    return markdown_table(("first LAMB step", "s (min–max)", "processes", "must", "goal", "reached"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.first_step", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--set", choices=SETS, default="small", help="of parameters (%(default)s)")
    parser.add_argument("--times", type=int, default=5, help="processes of each case (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="the targets are for %(default)s")
    given = parser.parse_args(arguments)
    print(
        f"{cpu_model()}, {given.threads} threads, set {given.set}: seconds of the first step alone, numba's import in them.\n"
    )
    print(report(measure(given.set, given.times, given.threads)))


if __name__ == "__main__":
    main()
