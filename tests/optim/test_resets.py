"""reset_bias_correction() and reset_moments(), as between two stages of training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .kinds import Make, bits, every_kind, model_of, train
from .pairs import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, Pair

SHAPES = [(4, 3), (5,), ()]
LOW = {"dtype": torch.bfloat16, "options": {"master_weights": True}}


def draw(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in SHAPES]


def start(name: str, options: dict[str, Any], low: bool) -> tuple[Pair, float]:
    dtype = torch.bfloat16 if low else torch.float64
    pair = Pair(name, [(draw(0)[:1], {}), (draw(0)[1:], {})], {**options, "master_weights": low}, dtype=dtype)
    for step in range(4):
        pair.step(draw(step + 1), lr=0.05)
    return pair, FLOAT32_TOLERANCE if low else FLOAT64_TOLERANCE


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LAMB", {}), ("LAMB", {"bias_correction": False}), ("LARS", {"weight_decay": 0.1}),
     ("LARS", {"trust_norm": "momentum"})],
)  # fmt: skip
def test_the_bias_correction_starts_again_and_the_moments_stay(name: str, options: dict[str, Any], low: bool) -> None:
    pair, tolerance = start(name, options, low)
    weights = bits(pair.parameters)
    pair.optimizer.reset_bias_correction()
    assert bits(pair.parameters) == weights
    for state in pair.reference.states:
        state["step"] = 0
    pair.check(tolerance)
    for step in range(4):
        pair.step(draw(step + 10), lr=0.05)
        pair.check(tolerance)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LAMB", {}), ("LARS", {"weight_decay": 0.1}), ("LARS", {"nesterov": True, "lr_in_momentum": False}),
     ("LARS", {"trust_norm": "momentum"})],
)  # fmt: skip
def test_the_moments_start_again_and_the_count_and_master_stay(name: str, options: dict[str, Any], low: bool) -> None:
    pair, tolerance = start(name, options, low)
    pair.optimizer.reset_moments()
    for state in pair.reference.states:
        for key in state.keys() - {"step"}:
            state[key] = np.zeros_like(state[key])
    pair.check(tolerance)
    for step in range(4):
        pair.step(draw(step + 10), lr=0.05)
        pair.check(tolerance)


@every_kind
def test_both_together_are_a_new_optimizer(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    optimizer.reset_bias_correction()
    optimizer.reset_moments()
    twin.load_state_dict(model.state_dict())
    train(model, optimizer, range(3, 6))
    train(twin, make(twin.parameters()), range(3, 6))
    assert bits(model) == bits(twin)


@every_kind
def test_before_any_step_they_do_nothing(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer = make(model.parameters())
    optimizer.reset_bias_correction()
    optimizer.reset_moments()
    train(model, optimizer, range(2))
    train(twin, make(twin.parameters()), range(2))
    assert bits(model) == bits(twin)
