"""The two stages of NVIDIA's BERT-Large configuration of the LAMB paper's recipe, value by value."""

from __future__ import annotations

import math

import pytest

from lightning_scale.schedule import Stage, StagePlan, compose_rate

STAGES = [(7038, 6e-3, 0.2843), (1563, 4e-3, 0.128)]


@pytest.fixture(scope="module")
def plan() -> StagePlan:
    shared = {"power": 0.5, "decay_from": "stage_start", "bias_correction_step": "reset"}
    return StagePlan(
        [
            Stage(128, 7038, 65536, 64, lr=6e-3, warmup="28.43%", **shared),  # type: ignore[arg-type]
            Stage(512, 1563, 32768, 8, lr=4e-3, warmup="12.8%", **shared),  # type: ignore[arg-type]
        ]
    )


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (1, "2.999e-06"),
        (2000, "5.997e-03"),
        (2001, "5.076e-03"),
        (7037, "7.152e-05"),
        (7038 + 1, "1.999e-05"),
        (7038 + 200, "3.999e-03"),
        (7038 + 201, "3.734e-03"),
        (7038 + 1562, "1.012e-04"),
    ],
)
def test_named_steps(plan: StagePlan, step: int, rate: str) -> None:
    assert f"{plan.lr(step):.3e}" == rate


def test_the_last_step_of_each_stage_is_exactly_0(plan: StagePlan) -> None:
    assert plan.lr(7038) == 0
    assert plan.lr(7038 + 1563) == 0


def test_every_step_is_the_recipes_formula(plan: StagePlan) -> None:
    step = 0
    for total, lr, share in STAGES:
        for t in range(1, total + 1):
            step += 1
            p = t / total
            want = lr * p / share if p < share else lr * math.sqrt(1 - p)
            assert plan.lr(step) == pytest.approx(want, rel=1e-12, abs=1e-18)
            composed = compose_rate(step=step, batch_size=1, plan=plan)
            assert composed.of(123.0) == plan.lr(step)
    assert step == plan.total_steps == 8601


def test_warmups_and_samples(plan: StagePlan) -> None:
    first, second = plan.stages
    assert [math.floor(stage.warmup_steps()) for stage in plan.stages] == [2000, 200]
    assert (first.total_samples, second.total_samples) == (7038 * 65536, 1563 * 32768)
    assert plan.at(7038).stage is second
