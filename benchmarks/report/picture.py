"""A report as a picture. Imports matplotlib: import it where it is used.

``python -m benchmarks.report.picture benchmarks/results/<name>.json`` draws one of a run that was written down.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no window, no global state
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.report.result import WRONG

_OURS = "lightning_scale"
_ROW = 0.2  # inches


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of a report, `Report.as_dict`'s or a results file's."""
    figure_of(report).savefig(path, dpi=110)


def figure_of(report: Mapping[str, Any]) -> Figure:
    """Everyone's time beside the baseline's, and the state that everyone keeps: a pair of panels for each set of parameters."""
    runs = report.get("runs", [report])  # files from before there were several sets are one run
    rows = [[row for row in run["rows"] if row["ratio"] is not None] for run in runs]
    heights = [_ROW * len(own) + 0.8 for own in rows]
    figure = Figure(figsize=(11, 0.8 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(runs), 2, sharey="row", squeeze=False, width_ratios=(3, 1), height_ratios=heights)
    for run, own, (times, state) in zip(runs, rows, panels, strict=True):
        _times(times, own)
        asked = run["settings"]
        times.set_title(
            f"{asked['parameters']}: {run['elements']:,} elements in {run['tensors']:,} tensors, {asked['dtype']}",
            fontsize=9,
            loc="left",
        )
        state.barh(range(len(own)), [row["state_bytes_per_element"] for row in own], color=[_color(row) for row in own])
        for axis in (times, state):
            axis.grid(axis="x", alpha=0.3)
    times, state = panels[-1]
    times.set_xlabel(f"time of a step / {report['baseline']}'s, median and smallest to largest")
    state.set_xlabel("bytes of state / element")
    wrong = (
        "; ✗ does not compute what it is named after" if any(r["status"] == WRONG for own in rows for r in own) else ""
    )
    figure.suptitle(
        f"Optimizer steps on {report['environment']['device']}, {report['date'][:10]}\n"
        f"orange: this library; blue: torch; grey: others{wrong}",
        fontsize=10,
    )
    return figure


def _times(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows):
        ratio, color = row["ratio"], _color(row)
        axis.plot([ratio["min"], ratio["max"]], [place, place], color=color, linewidth=2, alpha=0.4)
        axis.plot(ratio["median"], place, "X" if row["status"] == WRONG else "o", color=color)
        axis.annotate(f"{ratio['median']:.2f}", (ratio["max"], place), (5, -3), textcoords="offset points", fontsize=7)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_xscale("log")
    # 0.5, 1, 2, 5: a scale that is shorter than a decade would name each of its nine lines, one over the other.
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.1)
    axis.set_yticks(range(len(rows)), [_mark(row) + row["name"] for row in rows], fontsize=8)
    axis.invert_yaxis()


def _mark(row: Mapping[str, Any]) -> str:
    return "✗ " if row["status"] == WRONG else ""


def _color(row: Mapping[str, Any]) -> str:
    return {_OURS: "C1", "torch": "C0"}.get(row["package"], "0.5")


def main(arguments: Sequence[str]) -> None:
    """The command."""
    for name in arguments:
        path = Path(name).with_suffix(".png")
        draw(json.loads(Path(name).read_text(encoding="utf-8")), path)
        print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
