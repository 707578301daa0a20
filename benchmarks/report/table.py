"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure.check import Verdict
from benchmarks.measure.spread import Spread
from benchmarks.report.result import MISSING, WRONG, Report, Row, Run, TargetRow

_COLUMNS = (
    "optimizer",
    "check",
    "× AdamW (min–max)",
    "ms",
    "B/el moved",
    "GB/s",
    "of copy",
    "state B/el",
    "extra B/el",
    "kernels",
    "Triton",
    "host ms",
    "rounds",
)


def markdown(report: Report) -> str:
    """All of it."""
    return "\n\n".join([_heading(report), *map(_run, report.runs), _targets(report.targets)]) + "\n"


def _heading(report: Report) -> str:
    where = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    interpreter = " Triton kernels ran in its interpreter: their times mean nothing." * where["triton_interpreter"]
    clocks = f" Clocks: {'; '.join(where['driver_and_clocks'].splitlines())}." if where["driver_and_clocks"] else ""
    return (
        f"# Optimizer steps, {report.date}\n\n"
        f"{where['device']} ({where['device_type']}; {where['cpu']}{', AVX-512' if where['avx512'] else ''},"
        f" {where['cores']} cores, {where['threads']} threads; {where['system']}). Python {where['python']}, {versions},"
        f" commit {where['commit']}.{interpreter}{clocks} Ratios are to {report.baseline} of the same round; medians."
    )


def _run(run: Run) -> str:
    asked, copied, others = run.settings, run.copy_bytes_per_second, run.others_share_of_cores
    disturbed = "" if others is None else f" Others used {others:.0%} of the cores' time meanwhile."
    parts = [
        f"## Set {asked['parameters']}: {run.elements:,} elements in {run.tensors:,} tensors, {asked['dtype']}",
        f"A copy of {asked['copy_mib']} MiB moves {copied.median / 1e9:.3g} GB/s (read and written;"
        f" {copied.min / 1e9:.3g}–{copied.max / 1e9:.3g}).{disturbed}",
        markdown_table(_COLUMNS, [_cells(row) for row in run.rows if row.status != MISSING]),
        _missing([row for row in run.rows if row.status == MISSING]),
        _notes(run.rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _cells(row: Row) -> list[str]:
    mark = "✗ " if row.status == WRONG else ""
    return [
        f"{mark}{row.name}",
        _check(row.check),
        _ratio(row.ratio),
        _milliseconds(row.seconds),
        _number(row.bytes_per_element),
        _number(None if row.bytes_per_second is None else row.bytes_per_second / 1e9),
        "-" if row.share_of_copy is None else f"{row.share_of_copy:.0%}",
        _number(row.state_bytes_per_element),
        _number(row.extra_bytes_per_element),
        _number(row.kernels),
        _number(row.triton_launches),
        _milliseconds(row.host_seconds),
        "-" if row.seconds is None else str(row.seconds.count),
    ]


def _check(check: Verdict | None) -> str:
    if check is None:
        return "-"
    return f"{check.rule}: {check.error:.0e}" if check.right else f"not {check.rule}: off by {check.error:.2g}"


def _ratio(ratio: Spread | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})"


def _milliseconds(seconds: Spread | None) -> str:
    return _number(None if seconds is None else seconds.median * 1e3)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _missing(rows: Sequence[Row]) -> str:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row.reason, []).append(row.name)
    lines = [f"- {'; '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "Not measured:\n\n" + "\n".join(lines) if lines else ""


def _notes(rows: Sequence[Row]) -> str:
    lines = [
        f"- {row.name} is {'' if row.instead.right else 'not '}{row.instead.rule}: off by {row.instead.error:.1g}."
        for row in rows
        if row.instead is not None
    ]
    lines += [f"- {row.name}: {row.note}." for row in rows if row.note and row.status != MISSING]
    writers = [row.name for row in rows if row.writes_gradients]
    if writers:
        lines.append(f"- Write into the gradients, which are put right outside of the time: {', '.join(writers)}.")
    return "Notes:\n\n" + "\n".join(lines) if lines else ""


def _targets(targets: Sequence[TargetRow]) -> str:
    cells = [
        [
            f"{t.optimizer} on {t.device}, {t.parameters}{f' ({t.note})' if t.note else ''}",
            f"{t.must:g}",
            f"{t.goal:g}",
            "unmeasured" if t.measured is None else f"{t.measured:.2f} ({t.by})",
            _reached(t),
        ]
        for t in targets
    ]
    return "## Targets\n\n" + markdown_table(("× AdamW", "must", "goal", "measured", "reached"), cells)


def _reached(target: TargetRow) -> str:
    if target.measured is None:
        return "-"
    if target.disturbed:
        return "disturbed by others"
    return "goal" if target.measured <= target.goal else "must" if target.measured <= target.must else "no"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, in columns that are as wide as their widest cell."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(columns), line(["-" * width for width in widths]), *(line(row) for row in rows)])
