"""Curves, table and picture by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.bert.run_record import RunRecord, StepRow, ValidationRow
from examples.comparisons.catalogue import Comparison, Panel, Variant
from examples.comparisons.curves import Curve, mean_and_spread, read, smooth
from examples.comparisons.picture import draw
from examples.comparisons.table import table


def _record(folder: Path, losses: list[float], held_out: float, ratio: float | None = None) -> Curve:
    rows = [StepRow(i, 1, 8 * i, 32, 8, 0.1, loss, ratio, ratio, ratio) for i, loss in enumerate(losses, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    RunRecord(rows, [ValidationRow(len(losses), 1, held_out)]).write_csv(folder / "report.csv")
    return read(folder / "report.csv")


_COMPARISON = Comparison(
    "toy",
    "Two ways",
    (Variant("a", "way A", ()), Variant("b", "way B", ())),
    (Panel("loss", ("a", "b"), "steps"), Panel("distance", ("a", "b"), "steps", "difference")),
    seeds=(0, 1),
)


@pytest.fixture
def curves(tmp_path: Path) -> dict[str, dict[int, Curve]]:
    return {
        "a": {0: _record(tmp_path / "a0", [4.0, 3.0], 5.0, 0.25), 1: _record(tmp_path / "a1", [4.0, 2.0], 6.0, 0.5)},
        "b": {0: _record(tmp_path / "b0", [4.0, 3.5], 5.5), 1: _record(tmp_path / "b1", [4.25, 2.5], 6.3)},
    }


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    curve = _record(tmp_path, [4.0, 3.0, 2.0], 5.0)
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.samples.tolist() == [8, 16, 24]
    assert curve.train_loss.tolist() == [4.0, 3.0, 2.0]
    assert np.isnan(curve.ratio_least).all()
    assert curve.validation == {3: 5.0} and curve.validation_after_stage(1) == 5.0
    assert curve.last_loss() == 2.0


def test_smoothing_by_hand() -> None:
    assert smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_spread_by_hand() -> None:
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_spread([1.0]) == (1.0, None)


def test_the_table_line_by_line(curves: dict[str, dict[int, Curve]]) -> None:
    lines = table(_COMPARISON, curves).splitlines()
    assert lines[0] == "### Two ways"
    assert lines[4] == "| way A | 2 | 2.500 ± 0.707 | 5.500 ± 0.707 |  |  | 0.25 to 0.25 |"
    # Seed by seed: +0.5 and +0.3; the farthest is 0.5, at the last step of both.
    assert lines[5] == "| way B | 2 | 3.000 ± 0.707 | 5.900 ± 0.566 | +0.400 ± 0.141 | 0.5 |  |"


def test_the_picture_is_one(curves: dict[str, dict[int, Curve]], tmp_path: Path) -> None:
    draw(_COMPARISON, curves, tmp_path / "toy.png")
    with Image.open(tmp_path / "toy.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert image.width > 1000
    for color in ((31, 119, 180), (255, 127, 14)):  # the first two lines'
        assert (np.abs(pixels.astype(int) - color).sum(1) < 30).sum() > 100
