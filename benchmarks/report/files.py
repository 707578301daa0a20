"""Reports on disk."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path

from benchmarks.report.result import Report
from benchmarks.report.table import markdown

RESULTS = Path(__file__).parents[1] / "results"


def write(report: Report, folder: Path = RESULTS) -> list[Path]:
    """Write ``<date>-<device>.md`` and ``.json``, with a number behind where there are such files; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    device = report.environment["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{report.environment['device_type']}-{device}".lower()).strip("-")
    stem = f"{report.date[:10]}-{slug}"
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        paths = [folder / f"{name}.md", folder / f"{name}.json"]
        if not any(path.exists() for path in paths):
            break
    paths[0].write_text(markdown(report), encoding="utf-8")
    paths[1].write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths
