"""A comparison's curves as a picture. Imports matplotlib: import it where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state

from examples.comparisons.catalogue import Comparison, Panel
from examples.comparisons.curves import Array, Curve, distance, smooth
from examples.comparisons.table import Curves

_SMOOTH_OVER = 10
_NO_DISTANCE = 1e-8  # a logarithm has no place for 0
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))


def draw(comparison: Comparison, curves: Curves, path: Path) -> None:
    """Write a PNG: a panel for each of the comparison's, mean and spread over its seeds.

    Args:
        comparison: What was compared.
        curves: All of its runs.
        path: Where to.
    """
    count = len(comparison.panels)
    columns = 2
    rows = -(-count // columns)
    figure = Figure(figsize=(11, 0.8 + 4.2 * rows), layout="constrained")
    axes: Sequence[Axes] = [*figure.subplots(rows, columns, squeeze=False).flat]
    titles = {variant.name: variant.title for variant in comparison.variants}
    for axis, panel in zip(axes, comparison.panels, strict=False):
        _panel(axis, panel, curves, titles)
    for axis in axes[count:]:
        axis.set_axis_off()
    seeds = len(next(iter(curves.values())))
    over = "one seed" if seeds == 1 else f"mean and standard deviation over {seeds} seeds"
    figure.suptitle(f"{comparison.title}\n{over}; losses are means over {_SMOOTH_OVER} steps", fontsize=10)
    figure.savefig(path, dpi=110)


def _panel(axis: Axes, panel: Panel, curves: Curves, titles: Mapping[str, str]) -> None:
    for place, name in enumerate(panel.variants):
        runs = curves[name]
        some = next(iter(runs.values()))
        shown = some.stage >= panel.from_stage
        x = (some.steps if panel.x == "steps" else some.samples)[shown]
        color, dash = f"C{place}", _DASHES[place % len(_DASHES)]
        if panel.y == "difference":
            if place:
                farthest = np.max(
                    [distance(run, curves[panel.variants[0]][seed]) for seed, run in runs.items()], axis=0
                )
                axis.plot(x, np.maximum(farthest, _NO_DISTANCE), color=color, linewidth=1, label=titles[name])
            continue
        values = np.array([smooth(run.train_loss[shown], _SMOOTH_OVER) for run in runs.values()])
        _band(axis, x, values, color)
        axis.plot(x, values.mean(0), color=color, linestyle=dash, linewidth=1.3, label=titles[name])
        places = dict(zip(some.steps[shown].tolist(), x.tolist(), strict=True))
        _validations(axis, places, list(runs.values()), color)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel({"steps": "optimizer steps", "samples": "samples consumed"}[panel.x])
    axis.set_ylabel(
        "loss (nats per hidden token)" if panel.y == "loss" else f"largest distance, {_NO_DISTANCE:.0e} for none"
    )
    if panel.y == "difference":
        axis.set_yscale("log")
        axis.set_ylim(_NO_DISTANCE / 2, max(2.0, axis.get_ylim()[1]))  # the same in pictures that stand side by side
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _band(axis: Axes, x: Array, values: Array, color: str) -> None:
    if len(values) > 1:
        mean, spread = values.mean(0), values.std(0, ddof=1)
        axis.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)


def _validations(axis: Axes, places: Mapping[float, float], runs: Sequence[Curve], color: str) -> None:
    """The held-out losses as points, at the place of their step."""
    at = [step for step in runs[0].validation if step in places]
    values = np.array([[run.validation[step] for step in at] for run in runs])
    spreads = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(at))
    label = "held-out" if color == "C0" else None
    looks: dict[str, Any] = {"color": color, "linestyle": "", "marker": "o", "markersize": 4, "capsize": 2}
    axis.errorbar([places[step] for step in at], values.mean(0), yerr=spreads, label=label, **looks)
