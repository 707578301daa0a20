"""The file of rows: what is written is read, and what a kill cut short is not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from examples.scaling_study.rows import Row, RowFile

_ROW = Row("lstm", "lamb8bit", "study", 32, -2, 4, 256, 0.1 + 0.2, 50, 1 / 3, 2.5, 0.5, math.inf, 0.25, True, 1.25)
_OTHER = Row("bert", "sgd", "tuning", 1, 6, 1000, 8, 1e-9, 1, 0.0, 0.1, 0.2, 0.3, 0.4, False, 0.0)


def test_rows_come_back_bit_for_bit(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "new" / "rows.csv")
    assert file.read() == []
    file.append(_ROW)
    RowFile(file.path).append(_OTHER)
    assert RowFile(file.path).read() == [_ROW, _OTHER]


def test_a_loss_that_is_not_a_number_stays_one(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.csv")
    file.append(Row(**{**vars(_ROW), "train_loss": math.nan}))
    (row,) = file.read()
    assert math.isnan(row.train_loss) and row.diverged is True


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_a_line_cut_short_at_any_place_is_done_again(tmp_path: Path, kept: int) -> None:
    file = RowFile(tmp_path / "rows.csv")
    file.append(_ROW)
    before = file.path.read_bytes()
    file.append(_OTHER)
    line = file.path.read_bytes()[len(before) :]
    file.path.write_bytes(before + line[:kept])
    again = RowFile(file.path)
    assert again.read() == [_ROW]
    again.append(_OTHER)
    assert file.path.read_bytes() == before + line


def test_a_header_cut_short_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("task,opti")
    file = RowFile(tmp_path / "rows.csv")
    file.append(_ROW)
    assert file.read() == [_ROW]
