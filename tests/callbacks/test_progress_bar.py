"""The bar counts optimizer steps, over stages and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest

from lightning_scale.callbacks import SequenceLengthStages, Stage, StepProgressBar, TrustRatioMonitor
from lightning_scale.optim import LAMB
from tests.toys import Net, Recorder, Vectors, trainer

STAGES = [Stage(8, 3, 16, 4, lr=0.1), Stage(16, 2, 8, 8, lr=0.05)]


def fit(root: Path, bar: StepProgressBar, *more: L.Callback, **options: Any) -> L.Trainer:
    callbacks = [bar, SequenceLengthStages(STAGES), TrustRatioMonitor(1), *more]
    run = trainer(root, callbacks, logger=Recorder(root), enable_progress_bar=True)
    run.fit(Net(lambda m: LAMB(m.named_parameters())), Vectors(), **options)
    return run


def test_it_counts_optimizer_steps_of_all_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = StepProgressBar()
    fit(tmp_path, bar)
    assert (bar.train_progress_bar.n, bar.train_progress_bar.total) == (5, 5)
    shown = "".join(capsys.readouterr())
    for part in ("5/5", "stage=2", "sequence_length=16", "batch_size=8", "lr=0.00e+00", "trust_ratio="):
        assert part in shown, part
    assert "v_num" not in shown


def test_it_goes_on_where_a_run_is_resumed(tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, run: L.Trainer, *args: Any) -> None:
            if run.global_step == 4:
                run.save_checkpoint(tmp_path / "four.ckpt")

    fit(tmp_path, StepProgressBar(), Save())
    bar = Counting()
    fit(tmp_path, bar, ckpt_path=tmp_path / "four.ckpt")
    assert bar.shown == [4, 5, 5]


class Counting(StepProgressBar):
    """Notes what it shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.shown: list[int] = []

    def _show(self, run: L.Trainer, module: L.LightningModule) -> None:
        super()._show(run, module)
        self.shown.append(self.train_progress_bar.n)


def test_the_refresh_rate_is_in_optimizer_steps(tmp_path: Path) -> None:
    bar = Counting(refresh_rate=2)
    fit(tmp_path, bar)
    assert bar.shown == [0, 2, 3, 4, 5, 5]  # every second step, the ends of epochs and the last
