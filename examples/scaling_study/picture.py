"""The study as a picture. Imports matplotlib: import it where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import FixedLocator, NullLocator

from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.settings import Settings
from examples.scaling_study.summary import Line
from examples.scaling_study.tasks import TASKS

_LOOKS = {  # color, line, marker: an 8-bit optimizer looks like its 32-bit one, dashed
    "sgd": ("C7", "-", "s"),
    "adamw": ("C1", "-", "D"),
    "lars": ("C0", "-", "o"),
    "lamb": ("C3", "-", "^"),
    "lars8bit": ("C0", "--", "o"),
    "lamb8bit": ("C3", "--", "^"),
}
_CROSS: dict[str, Any] = {"linestyle": "", "marker": "x", "markersize": 7, "markeredgewidth": 2}
_APART = 1.05  # error bars of the same batch, side by side


def draw(settings: Settings, lines: Sequence[Line], guesses: dict[str, float], path: Path) -> None:
    """Write a PNG: accuracy against the batch, a panel a task.

    Args:
        settings: What was compared.
        lines: What came out.
        guesses: For each task the accuracy of always answering the most frequent class.
        path: Where to.
    """
    count = len(settings.tasks)
    figure = Figure(figsize=(1.5 + 4.5 * count, 5.2), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, count, squeeze=False)[0]
    for axis, name in zip(panels, settings.tasks, strict=True):
        _panel(axis, name, [line for line in lines if line.task == name], settings, guesses[name])
    panels[0].set_ylabel("test accuracy (%)")
    handles = {
        label: handle for axis in panels for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    titles = [recipe.title for recipe in RECIPES.values()]
    labels = sorted(handles, key=lambda label: titles.index(label) if label in titles else len(titles))
    columns = 2 if count == 1 else 4
    figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns, fontsize=9)
    seeds = len(settings.seeds)
    figure.suptitle(
        "Rates tuned at the smallest batch only, the same epochs for every batch\n"
        + ("one seed" if seeds == 1 else f"mean and standard deviation over {seeds} seeds"),
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


def _panel(axis: Axes, name: str, lines: list[Line], settings: Settings, guess: float) -> None:
    task = TASKS[name](settings.size)
    for place, line in enumerate(lines):
        color, style, marker = _LOOKS[line.optimizer]
        aside = _APART ** (place - (len(lines) - 1) / 2)
        cells = [c for c in line.cells.values() if c.mean is not None]
        axis.errorbar(
            [c.batch_size * aside for c in cells],
            [100 * (c.mean or 0.0) for c in cells],
            yerr=[100 * (c.spread or 0.0) for c in cells],
            color=color,
            linestyle=style,
            marker=marker,
            markersize=4,
            markerfacecolor="white" if style == "--" else color,
            linewidth=1.3,
            capsize=2,
            label=RECIPES[line.optimizer].title,
        )
        gone = [c for c in line.cells.values() if c.diverged]
        # At the panel's lower edge: there is no accuracy to speak of.
        places = [c.batch_size * aside for c in gone]
        at_edge = axis.get_xaxis_transform()
        (crosses,) = axis.plot(places, [0.0] * len(gone), color=color, clip_on=False, transform=at_edge, **_CROSS)
        crosses.set_in_layout(False)  # where there are none, their box is infinite
    axis.plot([], [], color="0.2", label="diverged, at least one seed", **_CROSS)
    low, high = axis.get_ylim()
    if low < 100 * guess:
        axis.axhline(100 * guess, color="0.3", linestyle=":", linewidth=1, label="always the most frequent class")
    axis.set_ylim(low, high)
    batches = [k * task.base_batch_size for k in settings.ks]
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(batches))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("batch (samples)")
    axis.set_title(task.title, fontsize=10)
    axis.grid(alpha=0.3)
