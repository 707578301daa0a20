"""Callbacks are copied and pickled in the middle of a run, where a module keeps them among its hyper-parameters, say."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_scale import callbacks as ours
from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.optim import LAMB
from tests.toys import Net, Vectors, trainer

OBSERVERS: dict[str, Callable[[], L.Callback]] = {
    "LEGWWarmup": lambda: ours.LEGWWarmup(4, "3 steps"),
    "ExactResume": ours.ExactResume,
    "FailTogether": ours.FailTogether,
    "GradientNoiseScale": lambda: ours.GradientNoiseScale(1, picture=False),
    "NonfiniteMonitor": lambda: ours.NonfiniteMonitor(every_n_steps=1),
    "Resume": ours.Resume,
    "SaveOnSignal": ours.SaveOnSignal,
    "StepProgressBar": ours.StepProgressBar,
    "TrustRatioMonitor": lambda: ours.TrustRatioMonitor(1, picture=False),
    "ValidateEvery": lambda: ours.ValidateEvery("3 steps"),
    "LearningRateMonitor": LearningRateMonitor,  # its hook is replaced while rates are scaled
    "ModelCheckpoint": lambda: ModelCheckpoint(every_n_train_steps=2),
}


class Copies(L.Callback):
    """Takes copies of the others in the middle of the third step's window."""

    def on_train_batch_end(self, fit: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if fit.global_step == 2 and fit.fit_loop.epoch_loop.batch_progress.current.ready % 2 == 1:
            others = [callback for callback in fit.callbacks if callback is not self]
            self.pickled = pickle.dumps(others)
            self.copied = copy.deepcopy(others)
            self.module = copy.deepcopy(pl_module)
            self.weights = copy.deepcopy(pl_module.state_dict())


def _lamb(
    net: L.LightningModule,
) -> LAMB:  # Lightning gives callbacks the module's `log`, and so it is pickled with them
    return LAMB(net.parameters(), lr=0.01)


def _fit(callbacks: list[L.Callback], folder: Path, steps: int = 4) -> tuple[L.Trainer, Net]:
    torch.manual_seed(0)
    module = Net(_lamb)
    options = {"logger": CSVLogger(folder), "enable_checkpointing": True}
    options["enable_progress_bar"] = any(isinstance(callback, ours.StepProgressBar) for callback in callbacks)
    fit = trainer(folder, callbacks, max_steps=steps, max_epochs=-1, **options)
    fit.fit(module, Vectors(4).train_dataloader(), Vectors(4).train_dataloader())
    return fit, module


@pytest.mark.parametrize("how", ["pickled", "copied"])
@pytest.mark.parametrize("owner", ["GradientAccumulation", "BatchSizeRamp"])
def test_copies_are_as_light_as_new_ones_and_train_alike(owner: str, how: str, tmp_path: Path) -> None:
    def own() -> L.Callback:
        return GradientAccumulation(8) if owner == "GradientAccumulation" else ours.BatchSizeRamp("0:8 24:16")

    copies = Copies()
    _, module = _fit([own(), *(make() for make in OBSERVERS.values()), copies], tmp_path / "first")
    again: list[L.Callback] = pickle.loads(copies.pickled) if how == "pickled" else copies.copied
    assert {type(callback).__name__ for callback in again} >= {owner, *OBSERVERS}
    assert b"Trainer" not in copies.pickled, "the whole Trainer has been taken along"
    again = [callback for callback in again if not isinstance(callback, ours.Resume)]  # the first run's folder
    fit, same = _fit(again, tmp_path / "second")
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert fit.global_step == 4


def test_a_module_that_is_copied_inside_a_window_is_a_module(tmp_path: Path) -> None:
    copies = Copies()
    _fit([GradientAccumulation(8), ours.LEGWWarmup(4, "3 steps"), copies], tmp_path)
    for name, weight in copies.weights.items():
        assert torch.equal(copies.module.state_dict()[name], weight)
    alone = trainer(tmp_path / "alone", [], max_steps=2, max_epochs=-1)
    alone.fit(copies.module, Vectors(4).train_dataloader())
    assert alone.global_step == 2
