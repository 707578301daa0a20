"""two_stage.yaml in small, through the command: the planned rates, the same bits twice, and after a stop."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml

from lightning_scale.cli import ScaleCLI

_TWO_STAGE = Path(__file__).parents[3] / "examples" / "bert" / "two_stage.yaml"
_STEPS, _LENGTHS, _BATCHES, _MICRO_BATCHES = (6, 5), (16, 32), (16, 4), (8, 2)
_BASE_LR, _BASE_BATCH, _WARMUP_EPOCHS = 5e-3, 4, 0.0012


class Watch(L.Callback):
    """Notes what this process trains on; raises before the step after ``stop_after``, as a power cut would."""

    def __init__(self, stop_after: int = -1) -> None:
        self.stop_after = stop_after
        self.seen: list[tuple[int, int, int, float]] = []
        """Steps done, samples and tokens of the micro-batch, rate."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.stop_after:
            raise RuntimeError("stopped")
        self._shape = batch["input_ids"].shape

    def on_before_backward(self, trainer: L.Trainer, *args: Any) -> None:
        self.seen.append((trainer.global_step, *self._shape, trainer.optimizers[0].param_groups[0]["lr"]))


@pytest.fixture(autouse=True, scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setattr(sys, "argv", ["lightning-scale"])
        yield


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the runs, so that Python's text is prepared once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(elsewhere: None, prepared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScaleCLI, Path]:
    """A run from the first step to the last, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return _fit(folder, prepared_dir), folder


def _tiny(folder: Path, stop_after: int = -1) -> Path:
    config: dict[str, Any] = yaml.safe_load(_TWO_STAGE.read_text())
    for callback in config["trainer"]["callbacks"]:
        options = callback.get("init_args", {}) if isinstance(callback, dict) else {}
        if "base_warmup" in options:
            options.update(base_batch_size=_BASE_BATCH, base_warmup=f"{_WARMUP_EPOCHS} epochs")
        if "interval" in options:
            options["interval"] = "3 steps"
        if "every_n_steps" in options:
            options["picture"] = False  # it takes longer than the training
        if "dir" in options:
            options["dir"] = str(folder)
        for i, stage in enumerate(options.get("stages", [])):
            stage.update(
                steps=_STEPS[i], sequence_length=_LENGTHS[i], batch_size=_BATCHES[i], micro_batch_size=_MICRO_BATCHES[i]
            )
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    config["trainer"]["callbacks"] += [
        {"class_path": f"{__name__}.Watch", "init_args": {"stop_after": stop_after}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {
                "dirpath": str(folder / "checkpoints"),
                "filename": "{step}",
                "every_n_train_steps": 1,
                "save_top_k": -1,
            },
        },
    ]
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def _fit(folder: Path, cache_dir: Path, *more: str, stop_after: int = -1) -> ScaleCLI:
    return ScaleCLI(
        args=[
            "fit",
            f"--config={_tiny(folder, stop_after)}",
            "--data.vocab_size=512",
            f"--data.cache_dir={cache_dir}",
            f"--optimizer.lr={_BASE_LR}",
            "--model.layers=1",
            "--model.width=16",
            "--model.heads=2",
            "--trainer.limit_val_batches=2",
            *more,
        ]
    )


def _seen(cli: ScaleCLI) -> list[tuple[int, int, int, float]]:
    (watch,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, Watch)]
    return watch.seen


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open() as file:
        return list(csv.DictReader(file))


def _expected_rates(cli: ScaleCLI) -> list[float]:
    """Each stage: √(B/B0) times the base, a warmup of e0·N/B0 steps, then √(1 − the share of the rest that is done)."""
    rates = []
    for steps, length, batch in zip(_STEPS, _LENGTHS, _BATCHES, strict=True):
        samples = len(cli.datamodule.text.training) // (length - 1)
        warmup = _WARMUP_EPOCHS * samples / _BASE_BATCH
        assert 0.5 < warmup < steps
        peak = _BASE_LR * math.sqrt(batch / _BASE_BATCH)
        for t in range(1, steps + 1):
            rates.append(peak * (t / warmup if t < warmup else math.sqrt(1 - (t - warmup) / (steps - warmup))))
    return rates


def test_both_stages_run_as_planned(whole: tuple[ScaleCLI, Path]) -> None:
    cli, folder = whole
    assert cli.trainer.global_step == cli.trainer.max_steps == sum(_STEPS)
    shapes = [seen[:3] for seen in _seen(cli)]
    first = [(step, 8, 16) for step in range(6) for _ in range(2)]
    assert shapes == first + [(step, 2, 32) for step in range(6, 11) for _ in range(2)]
    rows = _rows(folder)
    assert [int(row["step"]) for row in rows] == list(range(1, 12))
    assert [int(row["batch_size"]) for row in rows] == [16] * 6 + [4] * 5
    assert [int(row["sequence_length"]) for row in rows] == [16] * 6 + [32] * 5
    rates = [float(row["lr"]) for row in rows]
    assert rates == pytest.approx(_expected_rates(cli), rel=1e-9, abs=1e-15)
    assert rates == [seen[3] for seen in _seen(cli)][1::2]  # the optimizer's own, at the step's last micro-batch
    assert [row["step"] for row in rows if row["val_loss"]] == ["3", "6", "9"]  # every 6 micro-batches, 2 a step


def test_a_seed_gives_the_same_bits_and_another_does_not(
    whole: tuple[ScaleCLI, Path], tmp_path: Path, prepared_dir: Path
) -> None:
    again = _fit(tmp_path / "again", prepared_dir)
    assert _rows(tmp_path / "again") == _rows(whole[1])
    _assert_same_state(again, whole[0])
    _fit(tmp_path / "other", prepared_dir, "--seed_everything=8", "--data.seed=8")
    losses = [[row["train_loss"] for row in _rows(folder)] for folder in (whole[1], tmp_path / "other")]
    assert all(one != other for one, other in zip(*losses, strict=True))


@pytest.mark.parametrize("stop_after", [6, 9])  # where stage 2 begins, and inside it
def test_a_stopped_run_goes_on_in_stage_2(
    whole: tuple[ScaleCLI, Path], tmp_path: Path, prepared_dir: Path, stop_after: int
) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        _fit(tmp_path / "stopped", prepared_dir, stop_after=stop_after)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {f"step={step}.ckpt" for step in range(1, stop_after + 1)}

    last = checkpoints / f"step={stop_after}.ckpt"
    resumed = _fit(tmp_path / "resumed", prepared_dir, f"--ckpt_path={last}")
    # Nothing is trained on twice; length, micro-batch and rate are those of the run that was not stopped.
    assert _seen(resumed) == [seen for seen in _seen(whole[0]) if seen[0] >= stop_after]
    assert resumed.trainer.global_step == sum(_STEPS)
    _assert_same_state(resumed, whole[0])
    # The record is whole, losses equal to the last digit. Lightning saves before it validates, and does not make up for
    # a validation that was due at the checkpoint's own step.
    rows = _rows(whole[1])
    rows[stop_after - 1].update(val_loss="", val_accuracy="", val_perplexity="", frequency_guess="")
    assert _rows(tmp_path / "resumed") == rows


def test_a_checkpoint_of_another_vocabulary_is_refused(whole: tuple[ScaleCLI, Path], tmp_path: Path) -> None:
    checkpoint = whole[1] / "checkpoints" / "step=2.ckpt"
    with pytest.raises(ValueError, match="another text or vocabulary"):
        _fit(tmp_path / "two", tmp_path / "other", f"--ckpt_path={checkpoint}", "--data.vocab_size=400")


def _assert_same_state(a: ScaleCLI, b: ScaleCLI) -> None:
    """Weights and optimizer state, bit for bit."""
    theirs = dict(b.model.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in a.model.named_parameters())
    states = [cli.trainer.optimizers[0].state_dict()["state"] for cli in (a, b)]
    assert states[0].keys() == states[1].keys() != set()
    for mine, other in zip(states[0].values(), states[1].values(), strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(other[key])) for key in mine)
