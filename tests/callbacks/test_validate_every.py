"""Validation comes after so many steps, samples or tokens, whatever a step is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, SequenceLengthStages, Stage, ValidateEvery
from lightning_scale.errors import ConfigurationError
from lightning_scale.window import LoopAdapter
from tests.toys import Net, Vectors, trainer


class Noting(Net):
    """Notes (steps, samples) at every validation."""

    def __init__(self) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.01))
        self.at: list[tuple[int, int]] = []

    def on_validation_start(self) -> None:
        adapter = next(c for c in self.trainer.callbacks if isinstance(c, LoopAdapter))  # type: ignore[attr-defined]
        self.at.append((self.trainer.global_step, adapter.progress.samples))


def run(root: Path, *callbacks: L.Callback, ckpt: Path | None = None, **options: Any) -> tuple[Noting, L.Trainer]:
    module = Noting()
    fit = trainer(root, list(callbacks), **{"max_steps": 14, "max_epochs": -1, **options})
    fit.fit(module, Vectors(4), ckpt_path=ckpt)
    return module, fit


RAMP = "0:5 20:13"  # 5, 10, 15, 20, 33, 46, 59, 72, 85, 98, then 100 at the epoch's end, 113, 126, 139


def test_by_steps(tmp_path: Path) -> None:
    module, fit = run(tmp_path, BatchSizeRamp(RAMP), ValidateEvery("4 steps"))
    assert module.at == [(4, 20), (8, 72), (12, 113)]
    assert fit.check_val_every_n_epoch == 1  # as it was


def test_by_samples(tmp_path: Path) -> None:
    module, _ = run(tmp_path, BatchSizeRamp(RAMP), ValidateEvery("30 samples"))
    assert module.at == [(5, 33), (8, 72), (10, 98), (13, 126)]


def test_by_tokens(tmp_path: Path) -> None:
    """8 tokens a sample, then 16: 64, 128, 192, 320, 448, 576 tokens."""
    stages = SequenceLengthStages([Stage(8, 3, 8, 4), Stage(16, 3, 8, 4)])
    module, _ = run(tmp_path, stages, ValidateEvery("150 tokens"), max_steps=-1)
    assert module.at == [(3, 24), (4, 32), (6, 48)]


def test_without_an_owner_of_the_batch_size(tmp_path: Path) -> None:
    module, _ = run(tmp_path, ValidateEvery("3 steps"), accumulate_grad_batches=2, max_steps=7)
    assert module.at == [(3, 24), (6, 48)]


def test_a_resumed_run_validates_where_the_whole_one_does(tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, fit: L.Trainer, *args: Any) -> None:
            if fit.global_step == 6:
                fit.save_checkpoint(tmp_path / "six.ckpt")

    whole, _ = run(tmp_path, BatchSizeRamp(RAMP), ValidateEvery("4 steps"), Save())
    rest, _ = run(tmp_path, BatchSizeRamp(RAMP), ValidateEvery("4 steps"), ckpt=tmp_path / "six.ckpt")
    assert rest.at == whole.at[1:]


def test_checkpoints_and_early_stopping_follow_it(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{step}")
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0)  # nothing is that much better
    _, fit = run(
        tmp_path, GradientAccumulation(8), ValidateEvery("3 steps"), save, stop, enable_checkpointing=True, max_steps=20
    )
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=3.ckpt", "step=6.ckpt"]
    assert fit.global_step == 6


@pytest.mark.parametrize("options", [{"val_check_interval": 3}, {"check_val_every_n_epoch": 2}])
def test_two_intervals_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="both say when to validate: leave those out"):
        run(tmp_path, GradientAccumulation(8), ValidateEvery("3 steps"), **options)


class Never(L.Callback):
    """Training must not begin."""

    def on_train_start(self, *args: Any) -> None:
        raise AssertionError


def test_tokens_without_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match='"30 tokens" needs SequenceLengthStages'):
        run(tmp_path, GradientAccumulation(8), ValidateEvery("30 tokens"), Never())


@pytest.mark.parametrize("interval", ["0 steps", "3 epochs", "12", "a while"])
def test_bad_intervals(interval: str) -> None:
    with pytest.raises(ValueError, match="interval is"):
        ValidateEvery(interval)
