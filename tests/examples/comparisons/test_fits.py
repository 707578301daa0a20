"""Runs are done once, again where what they depend on changed, and their failures are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.comparisons import __main__ as command
from examples.comparisons import fits
from examples.comparisons.catalogue import COMPARISONS, EIGHT_BIT, Comparison, Panel, Variant
from examples.comparisons.curves import read
from examples.comparisons.fits import Run, do_all
from lightning_scale.errors import ConfigurationError


def test_8_bit_moments_beside_32_bit_ones_as_a_user_types_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = EIGHT_BIT.variants[:2]
    small = Comparison("pair", "a pair", pair, (Panel("LAMB", ("lamb", "lamb8bit")),), (0,), EIGHT_BIT.quick)
    monkeypatch.setitem(COMPARISONS, "pair", small)
    arguments = ["pair", "--quick", f"--dir={tmp_path}", "--cores=2"]
    command.main(arguments)
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    assert (tmp_path / "pair.png").stat().st_size > 10_000
    one, other = (read(tmp_path / "pair" / f"{variant.name}_0" / "report.csv") for variant in pair)
    assert len(one.train_loss) == 12
    assert one.train_loss[0] == other.train_loss[0]  # the same weights and samples
    assert one.train_loss[-1] < one.train_loss[0] - 0.03
    assert 0 < abs(one.train_loss[-1] - other.train_loss[-1]) < 0.01

    # Once more: nothing is done again.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.csv")}
    command.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.csv")} == times


def test_a_run_of_other_settings_is_not_done(tmp_path: Path) -> None:
    run = Run("pair", EIGHT_BIT.variants[0], 0, tmp_path)
    assert not run.done()
    (tmp_path / "run.json").write_text(json.dumps(run.facts()))
    assert run.done()
    assert not Run("pair", EIGHT_BIT.variants[0], 1, tmp_path).done()
    assert not Run("pair", EIGHT_BIT.variants[0], 0, tmp_path, ("--trainer.max_steps=3",)).done()
    (tmp_path / "run.json").write_text(json.dumps({**run.facts(), "files": {"a.yaml": ""}}))
    assert not run.done()


def test_a_failure_is_told_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Variant("wrong", "wrong", ("--config=there_is_none.yaml",))
    monkeypatch.setattr(fits.Run, "facts", lambda self: {})
    with pytest.raises(ConfigurationError, match=r"pair/wrong ended with [12](.|\n)*there_is_none"):
        do_all([Run("pair", wrong, 0, tmp_path / "wrong_0")], 1, lambda run: None)
    assert not (tmp_path / "wrong_0").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["eigth_bit"], "there is no comparison 'eigth_bit': write two_stage"), (["--cores=0"], "--cores is 0")],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err
