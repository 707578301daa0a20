"""The monitors' plots: layers over steps as colours, and the noise scale as curves.

This module imports matplotlib, which is optional: import it in the function that draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from lightning_scale.monitoring.history import History

RULE_OF_THUMB = (1e-3, 1e-2)
"""Hinton's bounds of ‖Δw‖ / ‖w‖: much smaller updates learn nothing, and much larger ones forget what was learned."""

_ROW = 0.17  # inches
_MOST = 60  # rows with a name of their own


def draw_heat_maps(ratios: History, steps: History, path: Path) -> None:
    """Write a PNG: the trust ratios of the layers that adapt, and the size of every layer's steps beside its weights.

    Args:
        ratios: The trust ratios by layer; it may be empty.
        steps: ‖Δw‖ / ‖w‖ by layer, with at least one row.
        path: The file to write.
    """
    panels = [history for history in (ratios, steps) if history.names]
    heights = [_height(len(history.names)) for history in panels]
    figure = Figure(figsize=(10, sum(heights) + 0.5 * len(heights) + 0.4), layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axis, history in zip(axes, panels, strict=True):
        if history is ratios:
            _ratios(figure, axis, history)
        else:
            _magnitudes(figure, axis, history)
    axes[-1].set_xlabel("optimizer steps")
    figure.savefig(path, dpi=120)


def _height(layers: int) -> float:
    """Return the height of a panel in inches."""
    return _ROW * min(max(layers, 8), 1.5 * _MOST)


def _ratios(figure: Figure, axis: Axes, history: History) -> None:
    table = history.table()
    known = table[table.isfinite() & (table > 0)].double()
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    if high < 1.5 * low:  # a scale of one colour says nothing
        low, high = low / 1.5, high * 1.5
    mesh = _mesh(axis, history, table.clamp(min=low), LogNorm(low, high), "viridis")
    axis.set_title("Trust ratios of the layers that adapt", fontsize=10, loc="left")
    _bar(figure, axis, history, mesh, "trust ratio")


def _magnitudes(figure: Figure, axis: Axes, history: History) -> None:
    table = history.table()
    known = table[table.isfinite() & (table > 0)].double().log10()
    middle = sum(map(math.log10, RULE_OF_THUMB)) / 2
    reach = 1.5  # decades to either side, so that white is the rule of thumb's middle
    if len(known):
        reach = max(reach, *(abs(float(known.quantile(q)) - middle) for q in (0.02, 0.98)))
    low, high = 10 ** (middle - reach), 10 ** (middle + reach)
    mesh = _mesh(axis, history, table.clamp(low, high), LogNorm(low, high), "RdBu_r")
    axis.set_title(
        "Size of each step beside the weights, all layers (grey: the weights were zero)", fontsize=10, loc="left"
    )
    bar = _bar(figure, axis, history, mesh, "‖Δw‖ / ‖w‖   (between the lines: rule of thumb, 0.001 to 0.01)")
    for edge in RULE_OF_THUMB:
        bar.ax.axhline(edge, color="black", linewidth=1.5)


def _mesh(axis: Axes, history: History, table: Tensor, norm: LogNorm, colours: str) -> Any:
    axis.set_facecolor("0.8")  # where there is no number
    numbers = torch.where(table.isfinite(), table, torch.nan).numpy()
    mesh = axis.pcolormesh(_edges(history.steps), range(len(history.names) + 1), numbers, norm=norm, cmap=colours)
    every = -(-len(history.names) // _MOST)
    places = range(0, len(history.names), every)
    axis.set_yticks([place + 0.5 for place in places], _short([history.names[place] for place in places]), fontsize=6)
    axis.invert_yaxis()  # the first layer on top
    return mesh


def _bar(figure: Figure, axis: Axes, history: History, mesh: Any, label: str) -> Any:
    bar = figure.colorbar(mesh, ax=axis, pad=0.01, fraction=0.04, aspect=_height(len(history.names)) / 0.18)
    few = mesh.norm.vmax < 1000 * mesh.norm.vmin
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=20))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=8)
    return bar


def _edges(steps: Sequence[int]) -> list[float]:
    """Where one step's column ends and the next begins: half-way between them."""
    inner = [(a + b) / 2 for a, b in pairwise(steps)]
    first = inner[0] if inner else steps[0] + 0.5
    last = inner[-1] if inner else steps[-1] - 0.5
    return [2 * steps[0] - first, *inner, 2 * steps[-1] - last]


def _short(names: Sequence[str]) -> list[str]:
    """Return names without the modules that all of them begin with."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 2 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return [".".join(part[shared:]) for part in parts]


def draw_noise(history: History, path: Path) -> None:
    """Write a PNG: the critical batch size and the run's own over the steps, and below them the two terms.

    Args:
        history: At least one row, with the names that `GradientNoiseScale` gives.
        path: The file to write.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 1.0])
    for axis in (above, below):
        axis.set_yscale("log", nonpositive="mask")  # before anything is drawn, for limits and ticks follow it
    steps = history.steps
    above.plot(steps, history.row("critical_batch_size"), color="C0", linewidth=1.6, label="critical batch size")
    above.plot(
        steps,
        history.row("batch_size"),
        color="C3",
        linewidth=1.6,
        drawstyle="steps-mid",
        label="batch size of the run",
    )
    above.set_ylabel("samples")
    below.plot(steps, history.row("trace"), color="C4", label="tr Σ, variance of one sample's gradient")
    below.plot(steps, history.row("gradient_square"), color="C2", label="|G|², the true gradient's square")
    below.plot(steps, history.row("seen_trace"), ".", color="C4", markersize=3, alpha=0.35)
    below.plot(steps, history.row("seen_gradient_square"), ".", color="C2", markersize=3, alpha=0.35)
    below.set_ylabel("dots: single steps\n(those above 0)")
    below.set_xlabel("optimizer steps")
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    above.yaxis.set_minor_locator(NullLocator())
    below.yaxis.set_major_locator(LogLocator(numticks=8))
    below.set_xlim(0, None)
    for axis in (above, below):
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    above.set_title(
        "Gradient noise scale: below the critical batch size, twice the batch is worth nearly twice the step"
    )
    above.title.set_fontsize(10)
    figure.savefig(path, dpi=120)
