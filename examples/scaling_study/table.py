"""The study as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.settings import Settings
from examples.scaling_study.summary import Cell, Line, best
from examples.scaling_study.tasks import TASKS

_LEGEND = """\
Test accuracy in %: mean ± standard deviation over the seeds. **Bold**: the highest mean of its column, among those in which
no run diverged. "2/5 diverged": so many runs ended with a loss that is not finite or no better than equal probabilities for
all classes; the mean is over the others. *change*: from the first batch to the last, in points. Rates were chosen at the
first batch by the loss on other held-out samples, and nothing was chosen again."""


def table(settings: Settings, lines: Sequence[Line], guesses: dict[str, float]) -> str:
    """All tasks.

    Args:
        settings: What was compared.
        lines: What came out.
        guesses: For each task the accuracy of always answering the most frequent class.
    """
    parts = [
        _of_task(task, [line for line in lines if line.task == task], settings, guesses) for task in settings.tasks
    ]
    return "\n\n".join(part for part in [*parts, _LEGEND, _edges(lines)] if part) + "\n"


def _of_task(name: str, lines: list[Line], settings: Settings, guesses: dict[str, float]) -> str:
    if not lines:
        return ""
    task = TASKS[name](settings.size)
    batches = [f"{k * task.base_batch_size:,}" for k in settings.ks]
    title = f"### {task.title}: {settings.epochs(task)} epochs; the most frequent class has {100 * guesses[name]:.1f} %"
    header = ["batch", "rate at " + batches[0], *batches, "change"]
    winners = {k: best(line.cells[k] for line in lines if k in line.cells) for k in settings.ks}
    body = []
    for line in lines:
        cells = [_cell(line.cells.get(k), winners[k]) for k in settings.ks]
        rate = f"{line.rate:.3g}{' (edge)' if line.at_edge else ''}"
        body.append([RECIPES[line.optimizer].title, rate, *cells, _change(line, settings.ks)])
    rule = ["---", *["---:"] * (len(header) - 1)]
    return title + "\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def _cell(cell: Cell | None, winner: Cell | None) -> str:
    if cell is None:
        return "–"
    if cell.mean is None:
        return "diverged"
    text = f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.spread:.1f}" if cell.spread is not None else "")
    if winner is not None and cell.mean == winner.mean and not cell.diverged:
        text = f"**{text}**"
    return text + (f" ({cell.diverged}/{cell.runs} diverged)" if cell.diverged else "")


def _change(line: Line, ks: Sequence[int]) -> str:
    first, last = (line.cells.get(k) for k in (ks[0], ks[-1]))
    if first is None or last is None or first.mean is None or last.mean is None:
        return "–"
    return f"{100 * (last.mean - first.mean):+.1f}"


def _edges(lines: Sequence[Line]) -> str:
    said = [
        f"- The search of {RECIPES[line.optimizer].title} on {line.task} ended at an edge: {line.rate:.3g} was the best of"
        f" {line.tried[0]:.3g} to {line.tried[-1]:.3g}, and a better rate may lie beyond."
        for line in lines
        if line.at_edge
    ]
    return "\n".join(said)
