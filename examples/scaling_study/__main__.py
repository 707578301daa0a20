"""``python -m examples.scaling_study``: run the study, or go on with it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.cores import cores
from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.settings import Settings, quick
from examples.scaling_study.study import run
from examples.scaling_study.tasks import TASKS
from lightning_scale.errors import ConfigurationError

_MOST_WORKERS_ON_A_GPU = 4  # each has a CUDA context of its own


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m examples.scaling_study", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one task, two optimizers, two batches, one seed")
    parser.add_argument("--dir", type=Path, help="where the rows are and the report goes (runs/scaling_study)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the GPU where there is one; larger networks there")
    parser.add_argument("--workers", type=int, help="processes (the cores; on a GPU at most 4); 0: only this one")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), help="those alone")
    parser.add_argument("--optimizers", nargs="+", choices=tuple(RECIPES), help="those alone")
    parser.add_argument("--epochs-factor", type=float, help="of each task's epochs: 4 takes four times as long")
    options = parser.parse_args(arguments)
    device: str = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings = (
        quick(device) if options.quick else Settings(size="large" if device == "cuda" else "small", device=device)
    )
    if options.epochs_factor is not None and options.epochs_factor <= 0:
        parser.error(f"--epochs-factor is {options.epochs_factor}: write a number above 0")
    asked: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("tasks", "optimizers", "epochs_factor")
        if (value := getattr(options, name)) is not None
    }
    settings = replace(settings, **asked)
    folder = options.dir or Path("runs") / ("scaling_study_quick" if options.quick else "scaling_study")
    workers = _workers(device) if options.workers is None else options.workers
    if workers < 0:
        parser.error(f"--workers is {workers}: write a whole number of at least 0")
    # In the workers too: threads that wait for each other make small networks several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        text = run(settings, folder, workers)
    except ConfigurationError as error:
        parser.exit(2, f"scaling_study: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\nstopped; the same command goes on from {folder / 'rows.csv'}\n")
    print(f"\n{text}\npicture: {folder / 'picture.png'}\nrows: {folder / 'rows.csv'}")


def _workers(device: str) -> int:
    return cores() if device == "cpu" else min(cores(), _MOST_WORKERS_ON_A_GPU)


if __name__ == "__main__":
    main(sys.argv[1:])
