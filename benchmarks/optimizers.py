"""Measure optimizer steps: ``python -m benchmarks.optimizers``, or this file. See `README.md` in this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as a file: its folder's parent is where the package is found, not its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.parameter_sets import SETS
from benchmarks.report.files import RESULTS, write
from benchmarks.report.table import markdown
from benchmarks.run import run
from benchmarks.settings import Settings

_ON_CPUS = ("cpu", "small", "many")
_SMALL = ("small", "many")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.optimizers", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument(
        "--set",
        "--parameters",
        nargs="+",
        choices=SETS,
        help="of parameters, one or several; bert-large on CUDA and cpu, small and many elsewhere unless given",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="CUDA where there is one unless given")
    parser.add_argument("--dtype", choices=["float32", "bf16-master"], default="float32")
    parser.add_argument("--rounds", type=int, help="at most; 200 on CUDA, and elsewhere 30, or 100 of small sets")
    parser.add_argument("--least", type=int, help="rounds that everyone takes part in, however slow; 10, and 3")
    parser.add_argument("--seconds", type=float, default=150.0, help="for all timed steps, about (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU; the targets are for %(default)s")
    parser.add_argument("--flush", type=int, metavar="MIB", help="copied before each step; 256 on CUDA, 0 elsewhere")
    parser.add_argument(
        "--copy", type=int, metavar="MIB", help="of the copy compared with; 1024 on CUDA, 256 elsewhere"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of rows; * stands for anything")
    parser.add_argument(
        "--output",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FOLDER",
        help="write the table, its JSON and, with matplotlib, a picture; into benchmarks/results where no folder is given",
    )
    given = parser.parse_args(arguments)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: leave --device out, or give --device cpu")
    cuda = device == "cuda"
    names = given.set or (["bert-large"] if cuda else list(_ON_CPUS))
    whole = sum(_share(name) for name in names)
    common = Settings(
        device=device,
        dtype=given.dtype,
        least=_or(given.least, 10 if cuda else 3),
        threads=given.threads,
        flush_mib=_or(given.flush, 256 if cuda else 0),
        copy_mib=_or(given.copy, 1024 if cuda else 256),
        only=tuple(given.only),
    )
    settings = [
        replace(
            common,
            parameters=name,
            rounds=_or(given.rounds, 200 if cuda else 100 if name in _SMALL else 30),
            seconds=given.seconds * _share(name) / whole,
        )
        for name in names
    ]
    report = run(settings, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(markdown(report))
    if given.output is not None:
        for path in write(report, given.output):
            print(f"written: {path}", file=sys.stderr)


def _share(name: str) -> float:
    """How many parts of the seconds a set takes: a round of a small one is quick."""
    return 1.0 if name in _SMALL else 4.0


def _or(given: int | None, usual: int) -> int:
    return usual if given is None else given


if __name__ == "__main__":
    main()
