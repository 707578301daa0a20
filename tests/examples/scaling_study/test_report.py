"""Table and picture say what the rows say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from examples.scaling_study.picture import draw
from examples.scaling_study.rows import Row
from examples.scaling_study.settings import Settings
from examples.scaling_study.summary import best, cell, summarize
from examples.scaling_study.table import table

_SETTINGS = Settings(tasks=("lstm",), optimizers=("sgd", "lamb"), ks=(1, 32), seeds=(0, 1), tuning_seeds=(7,))


def _row(optimizer: str, k: int, seed: int, accuracy: float, diverged: bool = False) -> Row:
    return Row("lstm", optimizer, "study", k, 1, seed, 8 * k, 0.2, 10, 1.0, 1.0, 0.5, 1.0, accuracy, diverged, 1.0)


def _tuned(optimizer: str, losses: tuple[float, ...]) -> list[Row]:
    return [
        Row("lstm", optimizer, "tuning", 1, i, 7, 8, 0.1 * 2**i, 10, loss, loss, 0.5, loss, 0.5, False, 1.0)
        for i, loss in enumerate(losses)
    ]


_ROWS = [
    *_tuned("sgd", (2.0, 1.0, 3.0)),
    *_tuned("lamb", (2.0, 1.0)),
    _row("sgd", 1, 0, 0.90),
    _row("sgd", 1, 1, 0.94),
    _row("sgd", 32, 0, 0.99),
    _row("sgd", 32, 1, 0.1, diverged=True),
    _row("lamb", 1, 0, 0.90),
    _row("lamb", 1, 1, 0.91),
    _row("lamb", 32, 0, 0.80),
    _row("lamb", 32, 1, 0.82),
]


def test_mean_and_spread_by_hand() -> None:
    found = cell([_row("sgd", 1, 0, 0.90), _row("sgd", 1, 1, 0.94), _row("sgd", 1, 2, 0.1, diverged=True)])
    assert found.mean == pytest.approx(0.92)
    assert found.spread == pytest.approx(math.sqrt(2 * 0.02**2))
    assert (found.runs, found.diverged, found.batch_size) == (3, 1, 8)


def test_a_column_is_not_won_by_runs_of_which_some_diverged() -> None:
    safe, risky = cell([_row("lamb", 32, 0, 0.5)]), cell([_row("sgd", 32, 0, 0.9), _row("sgd", 32, 1, 0.0, True)])
    assert best([safe, risky]) is safe
    assert best([risky]) is None


def test_the_table_line_by_line() -> None:
    text = table(_SETTINGS, summarize(_SETTINGS, _ROWS), {"lstm": 0.103})
    lines = text.splitlines()
    assert lines[0] == "### LSTM, digits row by row: 10 epochs; the most frequent class has 10.3 %"
    assert lines[2] == "| batch | rate at 8 | 8 | 256 | change |"
    assert lines[4] == "| SGD, linear | 0.2 | **92.0 ± 2.8** | 99.0 (1/2 diverged) | +7.0 |"
    assert lines[5] == "| LAMB + LEGW | 0.2 (edge) | 90.5 ± 0.7 | **81.0 ± 1.4** | -9.5 |"
    assert "The search of LAMB + LEGW on lstm ended at an edge: 0.2 was the best of 0.1 to 0.2" in text
    assert "SGD, linear on lstm" not in text


def test_where_all_diverged_the_table_says_so() -> None:
    rows = [*_tuned("sgd", (2.0, 1.0, 3.0)), _row("sgd", 1, 0, 0.9), _row("sgd", 32, 0, 0.1, diverged=True)]
    assert "| SGD, linear | 0.2 | **90.0** | diverged | – |" in table(
        _SETTINGS, summarize(_SETTINGS, rows), {"lstm": 0.1}
    )


@pytest.mark.filterwarnings("error")  # a layout that does not fit
def test_the_picture_has_a_color_for_each_optimizer_and_crosses_for_divergence(tmp_path: Path) -> None:
    lines = summarize(_SETTINGS, _ROWS)
    draw(_SETTINGS, lines, {"lstm": 0.103}, tmp_path / "with.png")
    whole = [row for row in _ROWS if not row.diverged]
    draw(_SETTINGS, summarize(_SETTINGS, whole), {"lstm": 0.103}, tmp_path / "without.png")
    counts = [_colors(tmp_path / name) for name in ("with.png", "without.png")]
    gray, red = (127, 127, 127), (214, 39, 40)  # C7 and C3
    assert all(found[color] > 100 for found in counts for color in (gray, red))
    assert counts[0][gray] > counts[1][gray] + 20


def _colors(path: Path) -> dict[tuple[int, ...], int]:
    found = Image.open(path).convert("RGB").getcolors(maxcolors=2**24)
    assert found is not None
    return {color: count for count, color in found if isinstance(color, tuple)}
