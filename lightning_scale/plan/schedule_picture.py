"""Draws a run's schedule. The module imports matplotlib, which is optional: import it in the function that draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import MaxNLocator

from lightning_scale.plan.schedule import Schedule

_POINTS = 4000  # more than a picture has columns
_ROWS = (
    ("lr", "learning rate"),
    ("batch_size", "global batch\n(samples)"),
    ("micro_batches", "micro-batches\n(each rank)"),
    ("micro_batch_size", "micro-batch\n(samples)"),
    ("sequence_length", "length\n(tokens)"),
)
_COLUMNS = (("step", "optimizer steps"), ("samples", "samples"), ("tokens", "tokens"))


def draw(schedule: Schedule, path: Path) -> None:
    """Write a PNG of rate, batch, micro-batches, micro-batch and length, over steps, samples and tokens.

    Tokens and length are left out where there are no stages. Dotted lines are the schedule's marks.
    """
    steps = schedule.steps
    marked = {min(max(mark.step - 1, 0) + extra, len(steps) - 1) for mark in schedule.marks for extra in (0, 1)}
    stride = max(1, len(steps) // _POINTS)
    shown = [steps[i] for i in sorted({*range(0, len(steps), stride), len(steps) - 1, *marked})]
    rows = [row for row in _ROWS if getattr(shown[0], row[0]) is not None]
    columns = [column for column in _COLUMNS if getattr(shown[0], column[0]) is not None]
    figure = Figure(figsize=(4.6 * len(columns), 1.2 + 1.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex="col", sharey="row")
    for j, (x_name, x_label) in enumerate(columns):
        x = [getattr(step, x_name) for step in shown]
        for i, (name, label) in enumerate(rows):
            values = [getattr(step, name) for step in shown]
            _line(axes[i][j], x, values, label if j == 0 else "", steps=name != "lr")
        axes[-1][j].set_xlabel(x_label)
        axes[-1][j].xaxis.set_major_formatter(lambda value, _: _short(value))
        axes[-1][j].xaxis.set_major_locator(MaxNLocator(6))
        axes[-1][j].set_xlim(0, x[-1] or 1)
        places = [(getattr(steps[mark.step - 1], x_name) if mark.step else 0, mark.text) for mark in schedule.marks]
        _marks([row[j] for row in axes], places, x[-1])
    figure.savefig(path, dpi=110)


def _line(axis: Axes, x: Sequence[float], y: Sequence[float], label: str, *, steps: bool) -> None:
    axis.plot(x, y, color="C0", linewidth=1.3, drawstyle="steps-pre" if steps else "default")
    axis.set_ylim(0, 1.12 * max(y) or 1)
    axis.grid(alpha=0.3)
    if steps:
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    if label:
        axis.set_ylabel(label)


def _marks(axes: Sequence[Axes], places: Sequence[tuple[float, str]], end: float) -> None:
    together: dict[float, list[str]] = {}
    for place, text in places:
        together.setdefault(place, []).append(text)
    for number, (place, texts) in enumerate(together.items()):
        for axis in axes:
            axis.axvline(place, color="0.3", linestyle=":", linewidth=1)
        level = number % 3 if len(together) > 2 else 0  # so that labels do not lie on one another
        right = place > 0.6 * end
        axes[0].annotate(
            ", ".join(texts),
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 10 * level),
            textcoords="offset points",
            fontsize=7,
            ha="right" if right else "left",
        )


def _short(value: float) -> str:
    """Return a number as short as it can be written: 1500000 as "1.5M"."""
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"
