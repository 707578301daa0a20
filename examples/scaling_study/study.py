"""A study from its first run to its report, or from where it was stopped."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lightning_scale
from examples.scaling_study.jobs import due, total
from examples.scaling_study.rates import LEGW_WARMUP
from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.rows import Job, Row, RowFile
from examples.scaling_study.settings import Settings
from examples.scaling_study.summary import Line, summarize
from examples.scaling_study.table import table
from examples.scaling_study.tasks import TASKS
from examples.scaling_study.work import do_all
from lightning_scale.errors import ConfigurationError


def run(settings: Settings, folder: Path, workers: int) -> str:
    """Do what is missing, write the report, and return its table.

    Written into the folder: ``rows.csv``, ``study.json`` (what the rows are of), ``summary.csv``, ``table.md``,
    ``picture.png``.

    Args:
        settings: What is compared.
        folder: Where the rows are, or will be.
        workers: Processes; 0 for this one.

    Raises:
        ConfigurationError: where the folder holds rows of other settings, packages or code.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(settings, folder / "study.json")
    file = RowFile(folder / "rows.csv")
    rows = file.read()
    guesses = {name: TASKS[name](settings.size).load(folder).guess for name in settings.tasks}  # makes the text, once

    with tqdm(total=total(settings, rows), initial=len(rows), desc="runs", unit="run", smoothing=0.05) as bar:

        def take(row: Row) -> None:
            file.append(row)
            rows.append(row)
            bar.total = total(settings, rows)
            bar.set_postfix_str(f"{row.task}, {row.optimizer}, batch {row.batch_size}", refresh=False)
            bar.update()

        def free(running: Sequence[Job]) -> list[Job]:
            return [job for job in due(settings, rows) if job not in running]

        do_all(free, take, settings, folder, workers)
    return _report(settings, rows, guesses, folder)


def _report(settings: Settings, rows: Sequence[Row], guesses: dict[str, float], folder: Path) -> str:
    from examples.scaling_study.picture import draw

    lines = summarize(settings, rows)
    text = table(settings, lines, guesses)
    (folder / "table.md").write_text(text)
    (folder / "summary.csv").write_text("\n".join(_summary_lines(lines)) + "\n")
    draw(settings, lines, guesses, folder / "picture.png")
    return text


def _summary_lines(lines: Sequence[Line]) -> list[str]:
    """The table's numbers, one line a cell."""
    found = ["task,optimizer,rate,rate_at_edge,k,batch_size,runs,diverged,mean_accuracy,spread"]
    for line in lines:
        for k, cell in line.cells.items():
            values = (line.task, line.optimizer, line.rate, line.at_edge, k, *asdict(cell).values())
            found.append(",".join("" if value is None else str(value) for value in values))
    return found


def _check_same(settings: Settings, path: Path) -> None:
    """The rows of a folder are of one kind; what that is stands beside them."""
    present = _facts(settings)
    if not path.exists():
        path.write_text(json.dumps(present, indent=2) + "\n")
        return
    before = json.loads(path.read_text())
    differing = sorted(name for name in before.keys() | present.keys() if before.get(name) != present.get(name))
    if differing:
        name = differing[0]
        raise ConfigurationError(
            f"{path.parent} holds a study with another {name} ({before.get(name)}, now {present.get(name)}): write another"
            " --dir, or delete that one."
        )


def _facts(settings: Settings) -> dict[str, Any]:
    """What makes runs comparable."""
    tasks = [TASKS[name](settings.size) for name in settings.tasks]
    return {
        **settings.as_json(),
        "base_batches": {task.name: task.base_batch_size for task in tasks},
        "task_epochs": {task.name: settings.epochs(task) for task in tasks},
        "middle_rates": {name: RECIPES[name].middle_rate for name in settings.optimizers},
        "legw_warmup": LEGW_WARMUP,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning_scale": lightning_scale.__version__,
    }
