"""Reports on disk."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from benchmarks.report.result import Report
from benchmarks.report.table import markdown

RESULTS = Path(__file__).parents[1] / "results"


def slug(text: str) -> str:
    """A text in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write(report: Report, folder: Path = RESULTS) -> list[Path]:
    """Write ``<date>-<device>.md``, ``.json`` and, with matplotlib, ``.png``, with a number behind where there are such files.

    Returns:
        The paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = slug("{device_type} {device}".format(**report.environment))
    stem = f"{report.date[:10]}-{device}"
    for number in count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        paths = [folder / f"{name}{kind}" for kind in (".md", ".json", ".png")]
        if not any(path.exists() for path in paths):
            break
    table, data, picture = paths
    content = report.as_dict()
    drawn = find_spec("matplotlib") is not None
    shown = f"\n![time and state of every optimizer]({picture.name})\n" if drawn else ""
    table.write_text(markdown(report) + shown, encoding="utf-8")
    data.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not drawn:
        return [table, data]
    from benchmarks.report.picture import draw

    draw(content, picture)
    return [table, data, picture]
