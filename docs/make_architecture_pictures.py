"""Draws the pictures of `docs/architecture.md`: a window and a step. Run `python docs/make_architecture_pictures.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY, PALE = "#1f2933", "#66727f", "#f4f6f8"
BLUE, BLUE_EDGE = "#dcebfa", "#3b7dbd"  # what a rank, or a bucket, does by itself
AMBER, AMBER_EDGE = "#fdecc8", "#c98a12"  # what all ranks do together
GREEN, GREEN_EDGE = "#dcf1e1", "#3a9157"  # what changes the run: weights, rate, counters
WIDTH = 8.6  # inches; a page shows them at about this width, so sizes of letters are true


def canvas(height: float) -> tuple[Figure, Axes]:
    """An empty picture whose units are inches, from the upper left corner."""
    figure = Figure(figsize=(WIDTH, height), dpi=160, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    title: str = "",
    text: str = "",
    *,
    fill: str = BLUE,
    edge: str = BLUE_EDGE,
    size: float = 9.5,
    dashed: bool = False,
) -> None:
    """A box with a bold line and a plain one below it, both in its middle."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.2,
            linestyle="--" if dashed else "-",
        )
    )
    middle, lines = x + width / 2, text.count("\n") + 1 if text else 0
    line = size / 72 * 1.28
    top = y + height / 2 - (bool(title) * (title.count("\n") + 1) + lines) * line / 2
    if title:
        axes.text(middle, top, title, ha="center", va="top", size=size, weight="bold", color=INK, linespacing=1.1)
        top += (title.count("\n") + 1) * line
    if text:
        axes.text(middle, top, text, ha="center", va="top", size=size - 0.5, color=INK, linespacing=1.2)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, **look: object) -> None:
    """An arrow; ``bend`` is how far its middle lies from the straight line, as a share of its length."""
    style = {"color": GREY, "linewidth": 1.4, "linestyle": "-", **look}
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            shrinkA=0,
            shrinkB=0,
            connectionstyle=f"arc3,rad={bend}",
            **style,  # type: ignore[arg-type]
        )
    )


def note(
    axes: Axes, x: float, y: float, text: str, *, align: str = "left", size: float = 8.8, color: str = GREY
) -> None:
    axes.text(x, y, text, ha=align, va="center", size=size, color=color, linespacing=1.25)


def heading(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, ha="left", va="center", size=12, weight="bold", color=INK)


def key(axes: Axes, y: float) -> None:
    """What the colours mean."""
    x = 0.3
    for fill, edge, text, width in (
        (BLUE, BLUE_EDGE, "each rank by itself", 1.65),
        (AMBER, AMBER_EDGE, "all ranks together", 1.6),
        (GREEN, GREEN_EDGE, "what the run keeps", 1.6),
    ):
        box(axes, x, y - 0.08, 0.26, 0.16, fill=fill, edge=edge)
        note(axes, x + 0.34, y, text)
        x += width + 0.3


def draw_window(path: Path) -> None:
    """From the micro-batches of two ranks to one step: a batch of 20 samples, 4, 3 and 3 of them at a time."""
    figure, axes = canvas(5.75)
    heading(axes, 0.3, 0.3, "A window: batch_size=20 on two ranks, micro-batches of at most 4")
    axes.add_patch(
        FancyBboxPatch(
            (0.3, 0.62), 6.3, 2.62, boxstyle="round,pad=0,rounding_size=0.1", facecolor=PALE, edgecolor="#c7d0d9"
        )
    )
    sizes, left = (4, 3, 3), 1.1
    for row, y in enumerate((1.02, 2.1)):
        note(axes, 0.42, y + 0.42, f"rank {row}", color=INK, size=9.5)
        x = left
        for number, n in enumerate(sizes, 1):
            width = 0.5 * n
            box(axes, x, y, width, 0.84, f"{n} samples", f"forward, backward\ngradient × {n}")
            if number > 1:
                arrow(axes, (x - 0.14, y + 0.42), (x, y + 0.42))
            x += width + 0.14
    note(axes, left, 0.82, "gradients add up on each rank, and nothing is sent …")
    note(axes, 6.48, 3.1, "… until the last backward pass", align="right")
    box(
        axes,
        6.85,
        0.62,
        1.45,
        2.62,
        "all-reduce",
        "the gradients\nand the numbers\nof items,\nonce a window",
        fill=AMBER,
        edge=AMBER_EDGE,
    )
    for y in (1.44, 2.52):
        arrow(axes, (6.38, y), (6.85, y))
    top = 3.78
    chain = (
        (0.3, 1.8, "3  new counters", "+ 1 step, + 20 samples\n(+ tokens); in every\ncheckpoint", GREEN, GREEN_EDGE),
        (
            2.45,
            2.55,
            "2  the optimizer's step",
            "on that mean, at the rate\nof this batch; torch's\nschedulers step after it",
            GREEN,
            GREEN_EDGE,
        ),
        (
            5.35,
            2.95,
            "1  the mean gradient",
            "Σ n·g / Σ n\nover exactly 20 samples, however\nunevenly micro-batches hold them",
            AMBER,
            AMBER_EDGE,
        ),
    )
    for x, width, title, text, fill, edge in chain:
        box(axes, x, top, width, 1.06, title, text, fill=fill, edge=edge)
    arrow(axes, (7.575, 3.24), (7.575, top))
    arrow(axes, (5.35, top + 0.53), (5.0, top + 0.53))
    arrow(axes, (2.45, top + 0.53), (2.1, top + 0.53))
    arrow(axes, (0.7, top), (0.7, 3.24))
    note(axes, 0.82, 3.52, "4  the next window: its batch size and rate follow from the counters")
    key(axes, 5.35)
    figure.savefig(path)


def draw_step(path: Path) -> None:
    """From parameter groups to new weights: three buckets side by side, and what is done for all of them at once."""
    figure, axes = canvas(9.15)
    heading(axes, 0.3, 0.3, "A step of LAMB or LARS")
    left, gap, widths = 1.45, 0.2, (2.15, 2.15, 2.15)
    columns = [left + sum(widths[:i]) + gap * i for i in range(3)]
    right = columns[-1] + widths[-1]

    def label(y: float, text: str) -> None:
        axes.text(0.3, y, text, ha="left", va="center", size=9.5, weight="bold", color=INK, linespacing=1.25)

    def down(y: float, length: float) -> None:
        for x, width in zip(columns, widths, strict=True):
            arrow(axes, (x + width / 2, y), (x + width / 2, y + length))

    y = 0.62
    label(y + 0.3, "parameter\ngroups")
    box(
        axes,
        columns[0],
        y,
        widths[0] + gap + widths[1],
        0.6,
        "group 0",
        "lr, betas, weight_decay=0.01",
        fill=PALE,
        edge=GREY,
    )
    box(axes, columns[2], y, widths[2], 0.6, "group 1", "weight_decay=0", fill=PALE, edge=GREY)
    down(y + 0.6, 0.3)

    y = 1.52
    label(y + 0.4, "buckets")
    tensors = ("weights", "an embedding", "biases, norms")
    kinds = ("cuda:0, float32,\nwhole", "cuda:0, bfloat16,\nwhole", "cuda:0, float32,\nwhole")
    for x, width, title, text in zip(columns, widths, tensors, kinds, strict=True):
        box(axes, x, y, width, 0.8, title, text, fill=PALE, edge=GREY)
    down(y + 0.8, 0.3)

    y = 2.62
    label(y + 0.36, "look at all\ngradients")
    box(
        axes, left, y, right - left, 0.72, "one non-finite test, one global norm",
        "a NaN or Inf anywhere: the step is skipped and counted;  else: the clip's factor", fill=AMBER, edge=AMBER_EDGE,
    )  # fmt: skip
    down(y + 0.72, 0.3)

    y = 3.64
    label(y + 0.5, "first pass")
    for x, width in zip(columns, widths, strict=True):
        box(axes, x, y, width, 1.0, "each layer", "moments m, v; update u;\nthis rank's sums of w², u²")
    down(y + 1.0, 0.3)

    y = 4.94
    label(y + 0.3, "norms")
    box(
        axes, left, y, right - left, 0.6, "one all-reduce for all layers' sums of squares",
        "only where ranks hold shares of a layer: FSDP2, ZeRO", fill=AMBER, edge=AMBER_EDGE, dashed=True,
    )  # fmt: skip
    down(y + 0.6, 0.3)

    y = 5.84
    label(y + 0.3, "trust\nratios")
    for x, width in zip(columns, widths, strict=True):
        box(axes, x, y, width, 0.6, "", "r = φ(‖w‖) / ‖u‖\nof each layer")
    down(y + 0.6, 0.3)

    y = 6.74
    label(y + 0.3, "second pass")
    for x, width in zip(columns, widths, strict=True):
        box(axes, x, y, width, 0.6, "", "w ← w − lr · r · u\nof each layer", fill=GREEN, edge=GREEN_EDGE)

    y = 7.62
    box(axes, 0.3, y, right - 0.3, 0.98, fill=PALE, edge="#c7d0d9")
    axes.text(
        0.45, y + 0.49, "one backend\ntakes both\npasses of\na bucket", va="center", size=9, weight="bold", color=INK
    )
    x = 1.62
    for width, title, text in (
        (1.75, "triton", "on GPUs"),
        (1.95, "cpu", "on CPUs, by numba"),
        (2.6, "reference", "all else: plain torch, the truth\nthat the others are tested with"),
    ):
        box(axes, x, y + 0.14, width, 0.7, title, text, fill="white", edge=GREY)
        x += width + 0.12
    key(axes, 8.9)
    figure.savefig(path)


def main(folder: Path) -> None:
    """Write both pictures into a folder."""
    draw_window(folder / "architecture_window.png")
    draw_step(folder / "architecture_step.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
