"""A run goes on, inside an epoch, on another number of ranks or with another micro-batch: the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from lightning_scale.callbacks import BatchSizeRamp
from lightning_scale.schedule import StepSchedule
from tests.distributed.launch import run_ranks
from tests.distributed.ranks import ddp_options
from tests.toys import Tally, trainer
from tests.window.batches import check, exact_batches, resumable

SIZE, EPOCHS, SCHEDULE = 43, 3, "0:6 20:11 60:8"
AT = (1, 2, 3, 5, 6, 7, 9, 12)  # steps, of 17; the first and second epoch end with the 6th and the 11th


class Save(L.Callback):
    """Saves after each of the steps ``AT``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.last = folder, 0

    def on_train_batch_end(self, fit: L.Trainer, *args: Any) -> None:
        if fit.global_step in AT and fit.global_step != self.last:  # all ranks alike: saving waits for all
            fit.save_checkpoint(self.folder / f"{fit.global_step}.ckpt")
        self.last = fit.global_step


def run(
    folder: Path, micro: int = 4, ckpt: Path | None = None, last_window: Literal["step", "drop"] = "step"
) -> list[Tensor]:
    """The gradients of a whole run that saves, or of the rest of one."""
    module = Tally(SIZE)
    callbacks = [BatchSizeRamp(SCHEDULE, last_window=last_window), *([] if ckpt else [Save(folder)])]
    trainer(folder, callbacks, max_epochs=EPOCHS, **ddp_options()).fit(module, resumable(SIZE, micro), ckpt_path=ckpt)
    return module.gradients


def saving(folder: str) -> list[Tensor]:
    return run(Path(folder))


def resuming(folder: str) -> dict[int, list[Tensor]]:
    return {at: run(Path(folder), ckpt=Path(folder) / f"{at}.ckpt") for at in AT}


def check_rest(rest: dict[int, list[Tensor]], last_window: str = "step") -> None:
    steps = exact_batches(StepSchedule(SCHEDULE), SIZE, EPOCHS, last_window)
    for at, gradients in rest.items():
        check(gradients, steps[at:], torch.ones(SIZE), rtol=1e-6)


@pytest.mark.timeout(200)
def test_two_ranks_then_one(tmp_path: Path) -> None:
    run_ranks(__name__, "saving", tmp_path)
    check_rest(resuming(str(tmp_path)))


@pytest.mark.timeout(200)
def test_one_rank_then_two(tmp_path: Path) -> None:
    run(tmp_path)
    for rest in run_ranks(__name__, "resuming", tmp_path):
        check_rest(rest)


@pytest.mark.parametrize("last_window", ["step", "drop"])
@pytest.mark.parametrize(
    ("before", "after"),
    [(4, 3), (4, 2), (3, 6)],
)
def test_another_micro_batch(tmp_path: Path, before: int, after: int, last_window: Literal["step", "drop"]) -> None:
    run(tmp_path, before, last_window=last_window)
    rest = {at: run(tmp_path, after, tmp_path / f"{at}.ckpt", last_window) for at in AT}
    check_rest(rest, last_window)
