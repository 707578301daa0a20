"""The first step of a fresh process: which folder numba is given, and how the table reads."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import first_step
from benchmarks.measure.spread import Spread

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")


@needs_numba
def test_a_process_keeps_what_it_compiles_in_the_folder_that_it_is_given(tmp_path: Path) -> None:
    assert first_step._fresh("tiny", 1, tmp_path) > 0
    kernels = {path.name.partition("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert {name for name in kernels if name.startswith("lamb.")}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}
    first_step._fresh("tiny", 1, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")} == before  # nothing is compiled again


def test_the_cases_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[str] = []

    def fresh(name: str, threads: int, cache: Path) -> float:
        folders.append(cache.name)
        return 1.0 if cache.name == "kept" else 5.0

    monkeypatch.setattr(first_step, "_fresh", fresh)
    found = first_step.measure("tiny", 2, 1)
    assert folders == ["kept", "empty-0", "kept", "empty-1", "kept"]
    assert found == {"nothing cached": Spread(5.0, 5.0, 5.0, 2), "cached": Spread(1.0, 1.0, 1.0, 2)}


def test_where_nothing_is_kept_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_step, "_CHILD", "print(1.0)")
    with pytest.raises(RuntimeError, match="numba has kept nothing"):
        first_step._fresh("tiny", 1, tmp_path)
    monkeypatch.setattr(first_step, "_CHILD", "raise SystemExit('out of order')")
    with pytest.raises(RuntimeError, match="out of order"):
        first_step._fresh("tiny", 1, tmp_path)


def test_the_table_says_what_is_reached() -> None:
    table = first_step.report({"nothing cached": Spread(5.0, 6.0, 7.0, 5), "cached": Spread(0.2, 0.3, 2.0, 5)})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows == [
        ["nothing cached", "6.00 (5.00–7.00)", "5", "8", "4", "must"],
        ["cached", "0.30 (0.20–2.00)", "5", "1", "0.5", "goal"],
    ]
