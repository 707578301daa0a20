"""The critical batch size over a run. Imports matplotlib: import it where it is used."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import LogLocator, NullLocator

from lightning_scale.pictures.looks import Looks


def draw_noise(looks: Looks, path: Path) -> None:
    """Write a PNG: the critical batch size and the run's own over the steps, and below them the two terms.

    Args:
        looks: At least one, with the names that `GradientNoiseScale` gives.
        path: Where to.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, 1.0])
    for axis in (above, below):
        axis.set_yscale("log", nonpositive="mask")  # before anything is drawn, for limits and ticks follow it
    steps = looks.steps
    above.plot(steps, looks.row("critical_batch_size"), color="C0", linewidth=1.6, label="critical batch size")
    above.plot(
        steps, looks.row("batch_size"), color="C3", linewidth=1.6, drawstyle="steps-mid", label="batch size of the run"
    )
    above.set_ylabel("samples")
    below.plot(steps, looks.row("trace"), color="C4", label="tr Σ, variance of one sample's gradient")
    below.plot(steps, looks.row("gradient_square"), color="C2", label="|G|², the true gradient's square")
    below.plot(steps, looks.row("seen_trace"), ".", color="C4", markersize=3, alpha=0.35)
    below.plot(steps, looks.row("seen_gradient_square"), ".", color="C2", markersize=3, alpha=0.35)
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
