"""The rate beside a ramp, and what a ramp refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_scale.callbacks import (
    BatchSizeRamp,
    ExactResume,
    GradientAccumulation,
    LEGWWarmup,
    SequenceLengthStages,
    Stage,
)
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from lightning_scale.schedule import InsteadOfDecay, StepSchedule
from tests.toys import Net, Recorder, Vectors, indices, trainer

RAMP = "0:4 12:9 39:16"  # 3 steps of 4, 3 of 9, 1 of 16, 1 of 16 ...


def sgd(module: L.LightningModule) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.02)


def rates(root: Path, *callbacks: L.Callback, configure: Any = sgd, steps: int = 8, **options: Any) -> list[float]:
    module = Net(configure)
    trainer(root, list(callbacks), **{"max_steps": steps, "max_epochs": -1, **options}).fit(module, Vectors())
    return [lr for _, lr, _ in module.steps]


def test_without_scaling_the_rate_stays(tmp_path: Path) -> None:
    assert rates(tmp_path, BatchSizeRamp(RAMP)) == [0.02] * 8


@pytest.mark.parametrize(
    ("scaling", "factors"), [("sqrt", (1.0, 1.5, 2.0)), ("linear", (1.0, 9 / 4, 4.0))], ids=["sqrt", "linear"]
)
def test_the_rate_follows_the_batch(tmp_path: Path, scaling: Any, factors: tuple[float, ...]) -> None:
    expected = [0.02 * factors[i] for i in (0, 0, 0, 1, 1, 1, 2, 2)]
    assert rates(tmp_path, BatchSizeRamp(RAMP, lr_scaling=scaling)) == pytest.approx(expected, rel=1e-12)


def test_the_rate_beyond_the_noise_scale(tmp_path: Path) -> None:
    got = rates(tmp_path, BatchSizeRamp(RAMP, lr_scaling="linear_then_sqrt", noise_scale=9))
    assert got == pytest.approx([0.02 * f for f in [1] * 3 + [9 / 4] * 3 + [12 / 4] * 2], rel=1e-12)  # √(9·16) = 12


def test_a_scheduler_that_multiplies_does_not_compound(tmp_path: Path) -> None:
    """The rate is the scheduler's times the factor, as LearningRateMonitor shows it."""

    def decaying(module: L.LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    logger = Recorder(tmp_path)
    ramp, monitor = BatchSizeRamp(RAMP, lr_scaling="sqrt"), LearningRateMonitor("step")
    got = rates(tmp_path, ramp, monitor, configure=decaying, logger=logger, log_every_n_steps=1)
    factors = [1.0] * 3 + [1.5] * 3 + [2.0] * 2
    assert got == pytest.approx([0.02 * 0.5**t * f for t, f in enumerate(factors)], rel=1e-12)
    assert list(logger.values("lr-SGD").values()) == pytest.approx(got, rel=1e-6)


def test_a_schedulers_frequency_counts_optimizer_steps(tmp_path: Path) -> None:
    """Also where steps take different numbers of micro-batches; over epochs, and after a resume."""

    def every_third(module: L.LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 3}}

    got = rates(tmp_path, BatchSizeRamp(RAMP), configure=every_third, steps=20)
    assert got == pytest.approx([0.02 * 0.5 ** (t // 3) for t in range(20)], rel=1e-12)


def test_a_larger_batch_instead_of_decay(tmp_path: Path) -> None:
    """4 → 8 → 16 in place of halving; 16 is the most, so the third milestone halves the rate."""
    schedule = InsteadOfDecay(4, ["8 samples", "24 samples", "56 samples"], factor=0.5, max_batch_size=16)
    logger = Recorder(tmp_path)
    got = rates(tmp_path, BatchSizeRamp(schedule), logger=logger, log_every_n_steps=1)
    assert list(logger.values("batch_size").values()) == [4, 4, 8, 8, 16, 16, 16, 16]
    assert got == pytest.approx([0.02] * 6 + [0.01] * 2, rel=1e-12)


def test_a_stages_batch_instead_of_decay(tmp_path: Path) -> None:
    """What the cap leaves of the decay reaches a stage's own rate too."""
    schedule = InsteadOfDecay(4, ["8 samples", "24 samples"], factor=0.5, max_batch_size=8)
    stage = Stage(8, 6, schedule, 4, lr=0.1, decay="constant")
    assert rates(tmp_path, SequenceLengthStages([stage]), max_steps=-1) == pytest.approx([0.1] * 4 + [0.05] * 2)


def test_a_stage_may_ramp_through_odd_sizes(tmp_path: Path) -> None:
    """Micro-batches of at most 4, and 7 samples: the loader of the stage gives each size exactly."""
    logger = Recorder(tmp_path)
    stages = [Stage(8, 5, "0:3 6:7 20:10", 4), Stage(16, 2, 8, 8)]
    rates(tmp_path, SequenceLengthStages(stages), max_steps=-1, logger=logger, log_every_n_steps=1)
    assert list(logger.values("batch_size").values()) == [3, 3, 7, 7, 10, 8, 8]
    assert list(logger.values("samples_consumed").values()) == [3, 6, 13, 20, 30, 38, 46]


def test_legws_rate_and_warmup_follow_the_ramp(tmp_path: Path) -> None:
    got = rates(tmp_path, LEGWWarmup(4, "4 steps"), BatchSizeRamp(RAMP))
    factors = [1.0] * 3 + [1.5] * 3 + [2.0] * 2
    assert got == pytest.approx([0.02 * f * min(1, (t + 1) / 4) for t, f in enumerate(factors)], rel=1e-12)


DECAY = InsteadOfDecay(4, ["8 samples"], factor=0.5)


@pytest.mark.parametrize(
    ("callbacks", "sentence"),
    [
        ([BatchSizeRamp(RAMP, "sqrt"), LEGWWarmup(4)], "write lr_scaling: none in BatchSizeRamp, or remove LEGWWarmup"),
        ([BatchSizeRamp(DECAY), LEGWWarmup(4)], "write lr_scaling: none in LEGWWarmup"),
        (
            [BatchSizeRamp(RAMP), GradientAccumulation(8)],
            "BatchSizeRamp and GradientAccumulation both set the batch size",
        ),
        ([BatchSizeRamp(RAMP), BatchSizeRamp(RAMP)], "BatchSizeRamp and BatchSizeRamp both set the batch size"),
        ([BatchSizeRamp(RAMP), SequenceLengthStages([Stage(8, 2, 8, 4)])], "both set the batch size"),
        (
            [BatchSizeRamp("0:4 8:128", last_window="drop")],
            "a batch of 128 samples is larger than an epoch, which has 100",
        ),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, callbacks: list[L.Callback], sentence: str) -> None:
    fit = trainer(tmp_path, callbacks, max_steps=3)
    with pytest.raises(ConfigurationError) as error:
        fit.fit(Net(lambda m: LAMB(m.named_parameters())), Vectors())
    assert sentence in str(error.value)


def test_instead_of_decay_beside_legws_warmup_alone(tmp_path: Path) -> None:
    got = rates(tmp_path, BatchSizeRamp(DECAY), LEGWWarmup(4, "2 steps", lr_scaling="none"), steps=4)
    assert got == pytest.approx([0.01, 0.02, 0.02, 0.02])


def test_a_batch_that_a_loader_cannot_make(tmp_path: Path) -> None:
    fit = trainer(tmp_path, [BatchSizeRamp("0:2 8:8")], max_epochs=1)
    with pytest.raises(ConfigurationError, match="fewer than one micro-batch of 4 on each of 1 rank: use smaller"):
        fit.fit(Net(sgd), indices(20, 4))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"schedule": "256 512"}, "whole number"),
        ({"schedule": "0:4", "lr_scaling": "cubic"}, "lr_scaling is 'cubic': write none"),
        ({"schedule": "0:4", "last_window": "keep"}, "last_window is 'keep': write step or drop"),
        ({"schedule": "0:4", "lr_scaling": "linear_then_sqrt"}, "needs noise_scale"),
        ({"schedule": "0:4", "noise_scale": 5.0}, "does not use it"),
        ({"schedule": DECAY, "lr_scaling": "sqrt"}, "InsteadOfDecay grows the batch in place of changing the rate"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BatchSizeRamp(**arguments)


def test_a_schedule_in_tokens(tmp_path: Path) -> None:
    logger = Recorder(tmp_path)
    schedule = StepSchedule("0:4 1K:8", unit="tokens", tokens_per_sample=128)  # 1000 tokens: after 8 samples
    rates(tmp_path, BatchSizeRamp(schedule), ExactResume(), steps=4, logger=logger, log_every_n_steps=1)
    assert list(logger.values("batch_size").values()) == [4, 4, 8, 8]
