"""Runs are done once, again where what they depend on changed, and their failures are told."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from examples.comparisons import __main__ as command
from examples.comparisons import fits
from examples.comparisons.catalogue import BATCHES, COMPARISONS, EIGHT_BIT, RESUME, Comparison, Panel, Variant
from examples.comparisons.curves import distance, read
from examples.comparisons.fits import Run, do_all
from lightning_scale.errors import ConfigurationError


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_batch_cut_in_several_ways_as_a_user_types_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps: those of the whole batch with GradientAccumulation, others with Lightning's own."""
    variants = tuple(variant for variant in BATCHES.variants if variant.processes == 1)
    panel = Panel("loss", tuple(variant.name for variant in variants), "steps", "difference")
    monkeypatch.setitem(COMPARISONS, "cut", Comparison("cut", "cut", variants, (panel,), (0,), BATCHES.quick))
    command.main(["cut", "--quick", f"--dir={tmp_path}", "--cores=2"])
    curves = {variant.name: read(tmp_path / "cut" / f"{variant.name}_0" / "report.csv") for variant in variants}
    assert all(curve.samples.tolist() == [64, 128, 192, 256] for curve in curves.values())
    assert distance(curves["ours"], curves["at_once"]).max() < 2e-6
    assert distance(curves["lightning"], curves["at_once"])[1:].max() > 1e-4


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    run = Run("resume", RESUME.variants[1], 0, tmp_path)
    (first, killed), (second, ended) = run.starts(tmp_path)
    assert (killed, ended) == (-signal.SIGKILL, 0)
    assert first[-2:] == ["--trainer.callbacks+=examples.comparisons.kill.KillInStep", "--trainer.callbacks.step=100"]
    assert second[-1] == f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    assert first[:-2] == second[:-1]


def test_a_run_that_was_to_be_killed_and_ends_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = [sys.executable, "-c", "print('it ends')"]
    monkeypatch.setattr(Run, "starts", lambda self, folder: [(echo, -signal.SIGKILL), (echo, 0)])
    with pytest.raises(ConfigurationError, match=r"resume/killed ended with 0(.|\n)*it ends"):
        do_all([Run("resume", RESUME.variants[1], 0, tmp_path / "killed_0")], 1, lambda run: None)
    assert not (tmp_path / "killed_0").exists()


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
