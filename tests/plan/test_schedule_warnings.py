"""Each warning comes where it is meant, and nowhere else."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, LEGWWarmup, SequenceLengthStages, Stage
from lightning_scale.optim import LAMB
from lightning_scale.plan.dry_run import dry_run
from lightning_scale.plan.schedule import schedule_warnings
from tests.plan.test_dry_run import Plain
from tests.toys import Net, Vectors

CASES: dict[str, tuple[list[L.Callback], dict[str, Any], int, str]] = {
    "warmup": (
        [GradientAccumulation(10), LEGWWarmup(10, "20 steps")],
        {"max_steps": 8},
        1,
        "never reaches its peak, only 40%",
    ),
    "warmup of a stage": (
        [
            SequenceLengthStages([Stage(8, 2, 16, 4, lr=0.1, warmup="1 steps"), Stage(8, 5, 16, 4)]),
            LEGWWarmup(16, "10 steps"),
        ],
        {},
        1,
        "stage 2 has 5: the rate never reaches its peak, only 50%",
    ),
    "square root": (
        [GradientAccumulation(40_000), LEGWWarmup(4000, "1 steps")],
        {"max_steps": 3},
        1000,
        "shown to hold up to 32K",
    ),
    "ramp": (
        [BatchSizeRamp("0:10 500:20")],
        {"max_steps": 9},
        1,
        "reaches 20 after 500 samples, and training ends after 90",
    ),
    "downwards": (
        [BatchSizeRamp("0:5 10:10 40:20"), LEGWWarmup(10, "2 steps")],
        {"max_steps": 9},
        1,
        "2 steps have fewer samples",
    ),
}


def said(callbacks: list[L.Callback], options: dict[str, Any], ranks: int, data: Any = None) -> list[str]:
    with torch.device("meta"):
        model = Net(lambda module: LAMB(module.named_parameters(), lr=0.1))
    big = data if data is not None else Sized() if ranks > 1 else Vectors(5)
    return schedule_warnings(dry_run(model, big, callbacks, options, ranks).schedule)


class Sized(Vectors):
    """Enough samples for large batches."""

    def train_dataloader(self) -> Any:
        from torch.utils.data import DataLoader

        from lightning_scale.data import ResumableBatchSampler

        return DataLoader(range(10**6), batch_sampler=ResumableBatchSampler(10**6, 40))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_one_warning_for_each(name: str) -> None:
    callbacks, options, ranks, words = CASES[name]
    (sentence,) = said(callbacks, options, ranks)
    assert words in sentence


def test_more_ranks_than_samples() -> None:
    assert any("128 ranks and 100 samples" in s for s in said([], {"max_epochs": 1}, 128, Plain(1)))


def test_a_sound_run_has_none() -> None:
    callbacks = [BatchSizeRamp("0:10 40:20"), LEGWWarmup(10, "4 steps")]
    assert said(callbacks, {"max_steps": 9}, 1) == []


def test_what_fit_warns_of_is_told() -> None:
    (sentence,) = said([BatchSizeRamp("0:10 40:17")], {"max_epochs": 1}, 1, Plain(5))
    assert "are rounded to the nearest" in sentence
