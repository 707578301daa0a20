"""The peak, the warmup and the decay of every optimizer, in the steps that a run takes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from examples.scaling_study.rates import course
from examples.scaling_study.recipes import RECIPES, Recipe
from examples.scaling_study.tasks import TASKS
from examples.scaling_study.training import train
from lightning_scale.optim import LAMB, LARS, LAMB8bit, LARS8bit

_RATE = 0.01


def _rates(name: str, k: int, tmp_path: Path) -> tuple[list[float], int]:
    """The rate of every step of two epochs of the digits, as the optimizer has it in its step; and the steps."""
    seen: list[float] = []

    def build(network: nn.Module, lr: float, k: int) -> Optimizer:
        optimizer = RECIPES[name].build(network, lr, k)
        optimizer.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
        return optimizer

    task = replace(TASKS["lstm"]("small"), epochs=2)
    recipe: Recipe = replace(RECIPES[name], build=build, warmup_epochs=RECIPES[name].warmup_epochs and 0.5)
    outcome = train(task, task.load(tmp_path), recipe, _RATE, k, seed=0, device="cpu")
    return seen, outcome.steps


@pytest.mark.parametrize("k", [4, 16])
def test_legw_is_the_root_of_k_and_a_warmup_of_the_same_steps(k: int, tmp_path: Path) -> None:
    seen, steps = _rates("lamb", k, tmp_path)
    assert steps == len(seen) == 2 * 1280 // (8 * k)
    warmup = 0.007 * 2 * 1280 / 8  # 0.7 % of the steps at the base batch, whatever k
    expected = [_RATE * math.sqrt(k) * min(1, t / warmup) * (1 - (t - 1) / steps) for t in range(1, steps + 1)]
    assert seen == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 8])
def test_sgd_is_goyals(k: int, tmp_path: Path) -> None:
    """From the base batch's rate to k times as much over the epochs of the warmup, here half of one."""
    seen, steps = _rates("sgd", k, tmp_path)
    warmup = 0.5 * 1280 / (8 * k)
    for t, rate in enumerate(seen):
        climbed = _RATE + (k - 1) * _RATE * min(1.0, t / warmup)
        assert rate == pytest.approx(climbed * (1 - t / steps), rel=1e-9)
    assert seen[0] == pytest.approx(_RATE)


def test_the_study_warms_sgd_up_for_five_epochs() -> None:
    assert RECIPES["sgd"].warmup_epochs == 5.0
    assert [name for name, recipe in RECIPES.items() if recipe.warmup_epochs is None] == [
        "adamw",
        "lars",
        "lamb",
        "lars8bit",
        "lamb8bit",
    ]


def test_the_course_falls_from_the_peak_to_the_last_steps_share() -> None:
    assert [course(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert course(0, 100, warmup_steps=10, k=4) == pytest.approx(1 / 4)
    assert course(10, 100, warmup_steps=10, k=4) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("k", "beta1", "beta2"), [(1, 0.9, 0.999), (8, 0.2, 0.992), (16, 0.0, 0.984), (32, 0.0, 0.968)]
)
def test_adamw_follows_malladi(k: int, beta1: float, beta2: float) -> None:
    optimizer = RECIPES["adamw"].build(nn.Linear(2, 2), 1e-3, k)
    assert isinstance(optimizer, AdamW)
    group = optimizer.param_groups[0]
    assert group["betas"] == pytest.approx((beta1, beta2), abs=1e-12)
    assert group["eps"] * math.sqrt(k) == pytest.approx(1e-8)
    assert group["lr"] == 1e-3  # the callback's is the root
    assert RECIPES["adamw"].lr_scaling == "sqrt" and RECIPES["sgd"].lr_scaling == "linear"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", SGD), ("adamw", AdamW), ("lars", LARS), ("lamb", LAMB), ("lars8bit", LARS8bit), ("lamb8bit", LAMB8bit)],
)
def test_biases_and_norms_do_not_decay(name: str, kind: type) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    nn.init.ones_(layer.bias)
    before = layer.weight.detach().clone()
    optimizer = RECIPES[name].build(layer, 1e-3, 1)
    assert type(optimizer) is kind
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(layer.bias, torch.ones(4))
    assert not torch.equal(layer.weight, before)
