"""The report: right numbers at every step, whole after a resume, and files that open."""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.bert import BertPretraining, RunReport, TextData
from lightning_scale.callbacks import GradientAccumulation, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from lightning_scale.schedule import StagePlan
from tests.toys import trainer

_STAGES = [
    Stage(16, steps=6, batch_size=16, micro_batch_size=8, lr=0.02, warmup="2 steps"),
    Stage(32, steps=4, batch_size=8, micro_batch_size=4, lr=0.01, warmup="1 steps"),
]


class Watched(BertPretraining):
    """Notes each micro-batch's loss, and each step's trust ratios."""

    def __init__(self) -> None:
        super().__init__(layers=1, width=16, heads=2, max_positions=32)
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, Any]:
        output = super().training_step(batch, batch_idx)
        self.losses.append(output["loss"].item())
        return output

    def configure_optimizers(self) -> Any:
        return LAMB(self.named_parameters(), lr=1.0)


def _fit(data: TextData, folder: Path, *callbacks: L.Callback, **options: Any) -> tuple[RunReport, Watched, L.Trainer]:
    L.seed_everything(0)
    report, module = RunReport(str(folder / "report"), trust_ratio_every=5), Watched()
    # The report first: it must not depend on its place.
    run = trainer(
        folder,
        [report, SequenceLengthStages(_STAGES), *callbacks],
        val_check_interval=4,
        check_val_every_n_epoch=None,
        **{"enable_checkpointing": bool(callbacks)},
    )
    run.fit(module, data, **options)
    return report, module, run


@pytest.fixture(scope="module")
def fitted(
    text_file: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunReport, Watched, Path, L.Trainer]:
    folder = tmp_path_factory.mktemp("fit")
    data = TextData([str(text_file)], vocab_size=128, cache_dir=str(cache_dir))
    report, module, run = _fit(data, folder)
    return report, module, folder / "report", run


def test_every_step_is_recorded_as_planned(fitted: Any) -> None:
    rows = fitted[0].record.steps
    plan = StagePlan(_STAGES)
    assert [row.step for row in rows] == list(range(1, 11))
    assert [row.stage for row in rows] == [1] * 6 + [2] * 4
    assert [row.sequence_length for row in rows] == [16] * 6 + [32] * 4
    assert [row.batch_size for row in rows] == [16] * 6 + [8] * 4
    assert [row.samples for row in rows] == [16, 32, 48, 64, 80, 96, 104, 112, 120, 128]
    assert [row.lr for row in rows] == pytest.approx([plan.lr(step) for step in range(1, 11)], abs=1e-12)


def test_the_training_loss_is_the_mean_of_a_steps_micro_batches(fitted: Any) -> None:
    report, module, *_ = fitted
    assert len(module.losses) == 20
    means = [(a + b) / 2 for a, b in zip(module.losses[::2], module.losses[1::2], strict=True)]
    assert [row.train_loss for row in report.record.steps] == pytest.approx(means, rel=1e-6)


def test_trust_ratios_are_the_optimizers(fitted: Any) -> None:
    report, _, _, run = fitted
    looked = [row for row in report.record.steps if row.trust_ratio_median is not None]
    assert [row.step for row in looked] == [1, 5, 10]
    # The optimizer still has those of the last step; a median of an even number lies between two of them.
    ratios = sorted(float(stats.trust_ratio) for stats in run.optimizers[0].layer_stats().values())
    adapting = [ratio for ratio in ratios if ratio != 1.0]
    assert 0 < len(adapting) < len(ratios)
    last = looked[-1]
    expected = (adapting[0], statistics.median(adapting), adapting[-1])
    assert (last.trust_ratio_min, last.trust_ratio_median, last.trust_ratio_max) == pytest.approx(expected)


def test_validation_stands_beside_the_guess_of_its_stage(fitted: Any, text_data: Callable[..., TextData]) -> None:
    rows = fitted[0].record.validations
    assert [row.step for row in rows] == [2, 4, 6, 8, 10]
    assert [row.stage for row in rows] == [1, 1, 1, 2, 2]
    guesses = [text_data(sequence_length=length).frequency_guess_loss() for length in (16, 32)]
    assert [row.frequency_guess for row in rows] == pytest.approx([guesses[0]] * 3 + [guesses[1]] * 2, rel=1e-6)
    assert rows[-1].val_loss == pytest.approx(float(fitted[3].callback_metrics["val_loss"]))
    assert rows[0].val_loss > rows[2].val_loss  # it learns


def test_the_csv_holds_the_same_numbers(fitted: Any) -> None:
    report, _, folder, _ = fitted
    lines = list(csv.DictReader((folder / "report.csv").open()))
    assert [float(line["train_loss"]) for line in lines] == [row.train_loss for row in report.record.steps]
    assert [float(line["lr"]) for line in lines] == [row.lr for row in report.record.steps]
    validated = {int(line["step"]): float(line["val_loss"]) for line in lines if line["val_loss"]}
    assert validated == {row.step: row.val_loss for row in report.record.validations}
    assert [line["trust_ratio_max"] != "" for line in lines] == [s in (1, 5, 10) for s in range(1, 11)]


def test_the_picture_is_a_readable_png(fitted: Any) -> None:
    from matplotlib.image import imread

    pixels = imread(fitted[2] / "report.png")
    assert pixels.shape[0] > 900
    assert pixels.shape[1] > 900
    assert pixels[..., :3].std() > 0.05  # something is drawn


def test_a_resumed_run_has_the_same_report(
    fitted: Any, text_data: Callable[..., TextData], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    _fit(text_data(), tmp_path, saving)
    resumed, *_ = _fit(text_data(), tmp_path / "resumed", saving, ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert resumed.record == fitted[0].record
    printed = capsys.readouterr().out
    assert str(tmp_path / "resumed" / "report" / "report.png") in printed


def test_a_run_without_stages_optimizer_statistics_or_validation(
    text_data: Callable[..., TextData], tmp_path: Path
) -> None:
    class Adam(Watched):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    report = RunReport()
    data = text_data(sequence_length=16, micro_batch_size=4)
    run = trainer(tmp_path, [report], max_steps=3, accumulate_grad_batches=2, limit_val_batches=0)
    run.fit(Adam(), data)
    assert [(row.step, row.stage, row.batch_size) for row in report.record.steps] == [(1, 1, 8), (2, 1, 8), (3, 1, 8)]
    assert report.record.validations == []
    assert {path.name for path in tmp_path.iterdir()} >= {"report.png", "report.csv"}


def test_the_training_loss_weighs_micro_batches_by_their_items(
    text_data: Callable[..., TextData], tmp_path: Path
) -> None:
    class Uneven(Watched):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, Any]:
            return {**super().training_step(batch, batch_idx), "num_items": 1 + 2 * (batch_idx % 2)}

    report, module = RunReport(), Uneven()
    data = text_data(sequence_length=16, micro_batch_size=4)
    trainer(tmp_path, [report], max_steps=3, accumulate_grad_batches=2, limit_val_batches=0).fit(module, data)
    means = [(a + 3 * b) / 4 for a, b in zip(module.losses[::2], module.losses[1::2], strict=True)]
    assert [row.train_loss for row in report.record.steps] == pytest.approx(means, rel=1e-6)


def test_what_an_epochs_end_leaves_out_is_in_no_step(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    report, module = RunReport(), Watched()
    data = text_data(sequence_length=16, micro_batch_size=4)
    drop = GradientAccumulation(8, last_window="drop")
    trainer(tmp_path, [report, drop], max_steps=5, limit_train_batches=5, limit_val_batches=0).fit(module, data)
    assert len(module.losses) == 12  # five in each of two epochs
    pairs = [(0, 1), (2, 3), (5, 6), (7, 8), (10, 11)]
    means = [(module.losses[i] + module.losses[j]) / 2 for i, j in pairs]
    assert [row.train_loss for row in report.record.steps] == pytest.approx(means, rel=1e-6)
    assert [row.batch_size for row in report.record.steps] == [8] * 5


class Failing(Watched):
    def on_train_batch_end(self, *_: Any) -> None:
        if self.trainer.global_step == 3:
            raise RuntimeError("the original")


def _fail(data: TextData, folder: Path, report: RunReport, **options: Any) -> L.Trainer:
    run = trainer(folder, [report], max_steps=5, limit_val_batches=0, **options)
    with pytest.raises(RuntimeError, match="the original"):
        run.fit(Failing(), data)
    return run


@pytest.mark.parametrize("dir", [None, "own"])
def test_a_run_that_ends_by_an_exception_keeps_its_report(
    text_data: Callable[..., TextData], tmp_path: Path, dir: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And asks no other rank for anything: those may be gone, or wait elsewhere."""
    errors, asked = [], []
    hook = RunReport.on_exception

    def on_exception(report: RunReport, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        errors.append(str(error))
        with monkeypatch.context() as patch:
            for collective in ("broadcast", "reduce", "barrier", "all_gather"):
                patch.setattr(trainer.strategy, collective, lambda value=None, *_, **__: asked.append(value) or value)
            hook(report, trainer, module, error)

    monkeypatch.setattr(RunReport, "on_exception", on_exception)
    _fail(text_data(sequence_length=16, micro_batch_size=4), tmp_path, RunReport(dir and str(tmp_path / dir)))
    assert (errors, asked) == (["the original"], [])
    folder = tmp_path / (dir or "")
    assert [line["step"] for line in csv.DictReader((folder / "report.csv").open())] == ["1", "2", "3"]
    assert (folder / "report.png").stat().st_size > 0


def test_a_report_that_cannot_be_written_hides_no_exception(
    text_data: Callable[..., TextData], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    _fail(text_data(sequence_length=16, micro_batch_size=4), tmp_path, RunReport(str(tmp_path / "file")))
    assert "could not be written" in caplog.text


def test_without_a_picture_the_numbers_are_kept(
    text_data: Callable[..., TextData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "examples.bert.picture", None)
    _fail(text_data(sequence_length=16, micro_batch_size=4), tmp_path, RunReport())
    assert len(list(csv.DictReader((tmp_path / "report.csv").open()))) == 3


def test_an_exception_on_another_rank_writes_nothing(
    text_data: Callable[..., TextData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = RunReport.on_exception

    def elsewhere(report: RunReport, trainer: L.Trainer, *args: Any) -> None:
        monkeypatch.setattr(type(trainer.strategy), "is_global_zero", False)
        hook(report, trainer, *args)

    monkeypatch.setattr(RunReport, "on_exception", elsewhere)
    _fail(text_data(sequence_length=16, micro_batch_size=4), tmp_path, RunReport())
    assert not (tmp_path / "report.csv").exists()


def test_an_exception_outside_of_fit_writes_nothing(text_data: Callable[..., TextData], tmp_path: Path) -> None:
    class FailsLater(Watched):
        def on_validation_start(self) -> None:
            raise RuntimeError("later")

    run = trainer(tmp_path, [RunReport()], max_steps=1, limit_val_batches=0)
    data = text_data(sequence_length=16, micro_batch_size=4)
    run.fit(Watched(), data)
    (tmp_path / "report.csv").unlink()
    run.limit_val_batches = 1
    with pytest.raises(RuntimeError, match="later"):
        run.validate(FailsLater(), data)
    assert not (tmp_path / "report.csv").exists()


def test_a_bad_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="trust_ratio_every is 0"):
        RunReport(trust_ratio_every=0)
