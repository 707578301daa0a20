"""A run's course as a picture. Imports matplotlib: import it where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import LogLocator, NullLocator

from examples.bert.run_record import RunRecord, XAxis

_NOTE = (
    "The loss can jump where a stage begins: its samples are longer, so places come into use that were never trained,"
    " and the rate climbs from zero again."
)


def draw(record: RunRecord, path: Path, x_axis: XAxis = "steps") -> None:
    """Write a PNG of loss, learning rate, batch, sequence length (where it changes) and trust ratios.

    Args:
        record: At least one step.
        path: Where to.
        x_axis: Over the optimizer steps, or the samples consumed (where the batch grows, steps are not alike).
    """
    record = record if x_axis == "steps" else _by_samples(record)
    has_ratios = any(row.trust_ratio_median is not None for row in record.steps)
    has_lengths = len({row.sequence_length for row in record.steps}) > 1
    heights = [3.0, 1.4, 1.2] + [1.2] * has_lengths + [1.6] * has_ratios
    figure = Figure(figsize=(9, 1.1 + sum(heights)), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    x = [row.step for row in record.steps]
    _loss(axes[0], record, x)
    _line(axes[1], x, [row.lr for row in record.steps], "learning rate")
    _line(axes[2], x, [row.batch_size for row in record.steps], "batch\n(samples)", steps=True)
    if has_lengths:
        _line(axes[3], x, [row.sequence_length for row in record.steps], "length\n(tokens)", steps=True)
    if has_ratios:
        _ratios(axes[-1], record)
    _mark_stages(axes, record)
    axes[-1].set_xlabel({"steps": "optimizer steps", "samples": "samples consumed"}[x_axis])
    axes[-1].set_xlim(0 if x_axis == "samples" else x[0] - 1, x[-1])
    if len(list(record.stages())) > 1:
        figure.supxlabel(_NOTE, fontsize=8, color="0.3")
    figure.savefig(path, dpi=120)


def _by_samples(record: RunRecord) -> RunRecord:
    """The same rows, each at the samples consumed in place of its step."""
    samples = {row.step: row.samples for row in record.steps}
    validations = [replace(row, step=samples[row.step]) for row in record.validations if row.step in samples]
    return RunRecord([replace(row, step=row.samples) for row in record.steps], validations)


def _loss(axis: Axes, record: RunRecord, x: list[int]) -> None:
    axis.plot(x, [row.train_loss for row in record.steps], color="C0", linewidth=0.8, alpha=0.7, label="training")
    points = record.validations
    x, y = [p.step for p in points], [p.val_loss for p in points]
    axis.plot(x, y, "o", color="C3", markersize=5, clip_on=False, zorder=3, label="validation")
    label = "guessing by word frequency (validation)"
    for _, rows, validations in record.stages():
        guesses = [v.frequency_guess for v in validations if v.frequency_guess is not None]
        if guesses:
            axis.hlines(guesses[-1], rows[0].step, rows[-1].step, color="0.3", linestyle="--", linewidth=1, label=label)
            label = ""  # one entry in the legend
    axis.set_ylabel("loss\n(nats per hidden token)")
    axis.legend(loc="upper right", fontsize=8)
    axis.grid(alpha=0.3)


def _line(axis: Axes, x: list[int], y: Sequence[float], name: str, steps: bool = False) -> None:
    axis.plot(x, y, color="C0", linewidth=1.2, drawstyle="steps-mid" if steps else "default")
    axis.set_ylabel(name)
    axis.set_ylim(0, 1.15 * max(y) or 1)
    axis.grid(alpha=0.3)


def _ratios(axis: Axes, record: RunRecord) -> None:
    rows: list[Any] = [row for row in record.steps if row.trust_ratio_median is not None]
    x = [row.step for row in rows]
    axis.fill_between(
        x,
        [row.trust_ratio_min for row in rows],
        [row.trust_ratio_max for row in rows],
        color="C2",
        alpha=0.25,
        label="smallest to largest layer",
    )
    axis.plot(x, [row.trust_ratio_median for row in rows], color="C2", linewidth=1.2, label="median layer")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylabel("trust ratio")
    axis.legend(loc="best", fontsize=8)
    axis.grid(alpha=0.3)


def _mark_stages(axes: Sequence[Axes], record: RunRecord) -> None:
    stages = list(record.stages())
    for number, rows, _ in stages if len(stages) > 1 else []:
        begins = rows[0].step - 1
        if number != stages[0][0]:
            for axis in axes:
                axis.axvline(begins, color="0.2", linestyle=":", linewidth=1)
        text = f" stage {number}: length {rows[0].sequence_length}, batch {rows[0].batch_size:,}"
        axes[0].annotate(
            text, (begins, 1), xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points", fontsize=8
        )
