"""Several groups, and parameters without a gradient, against the equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .pairs import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, SHAPES, STEPS, Pair, arrays_of, rate, to_numpy
from .reference import norm


@pytest.mark.parametrize("exclude_1d", [True, False])
@pytest.mark.parametrize("own", [{}, {"weight_decay": 0.3}, {"layer_adaptation": True}, {"layer_adaptation": False}])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LAMB", {}), ("LARS", {}), ("LARS", {"trust_norm": "momentum"}), ("LARS", {"lr_in_momentum": False})],
)
def test_a_groups_own_words_win_over_exclude_1d(
    name: str, options: dict[str, Any], own: dict[str, Any], exclude_1d: bool
) -> None:
    start = arrays_of(0, SHAPES)
    options = {"weight_decay": 0.1, "exclude_1d": exclude_1d, **options}
    pair = Pair(name, [(start, own), (start, {}), (start, {"weight_decay": 0.0, "lr": 0.5})], options)
    for step in range(STEPS):
        pair.step(arrays_of(step + 1, SHAPES * 3))
        pair.check(FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_every_group_uses_its_own_hyperparameters(name: str) -> None:
    own: dict[str, list[dict[str, Any]]] = {
        "LAMB": [{"lr": 0.1, "betas": (0.5, 0.6)}, {"eps": 0.3}, {"lr": 0.0}],
        "LARS": [{"lr": 0.1, "momentum": 0.3}, {"eps": 0.3}, {"trust_coefficient": 0.7}, {"lr": 0.0}],
    }
    start = arrays_of(0, [(4, 3), (3,)])
    pair = Pair(name, [(start, options) for options in own[name]], {"weight_decay": 0.1, "max_grad_norm": 1.0})
    for step in range(STEPS):
        pair.step(arrays_of(step + 1, [(4, 3), (3,)] * len(own[name])))
        pair.check(FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_a_parameter_without_gradient_is_left_out_and_its_count_waits(name: str, bias_correction: bool) -> None:
    options = {"bias_correction": bias_correction} if name == "LAMB" else {"weight_decay": 0.1}
    pair = Pair(name, [(arrays_of(0, [(3, 4), (4, 3), (5,)]), {})], {**options, "max_grad_norm": 1.0})
    for step in range(STEPS):
        gradients: list[np.ndarray | None] = list(arrays_of(step + 1, [(3, 4), (4, 3), (5,)]))
        if step % 3 != 1:
            gradients[1] = None
        if step < 4:
            gradients[2] = None
        before = [to_numpy(p) for p in pair.parameters]
        pair.step(gradients, lr=rate(step))
        pair.check(FLOAT64_TOLERANCE)
        for index, gradient in enumerate(gradients):
            assert np.array_equal(before[index], to_numpy(pair.parameters[index])) == (gradient is None)
    assert [s["step"] for s in pair.reference.states] == [10, 3, 6]


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_a_step_without_any_gradient_changes_nothing(name: str) -> None:
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], {"max_grad_norm": 1.0})
    before = [to_numpy(p) for p in pair.parameters]
    pair.optimizer.step()
    assert all(np.array_equal(a, to_numpy(p)) for a, p in zip(before, pair.parameters, strict=True))
    assert int(pair.optimizer.skipped_steps) == 0


@pytest.mark.parametrize("own_clip", [1.0, 1e-3])
@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_max_grad_norm_is_over_all_groups_together(name: str, own_clip: float) -> None:
    """Each group alone would stay below the limit of 1, or be clipped by another factor than all together."""
    start = arrays_of(0, [(4, 4)])
    pair = Pair(name, [(start, {}), (start, {}), (start, {})], {"max_grad_norm": own_clip, "weight_decay": 0.1})
    for step in range(3):
        gradients = arrays_of(step + 1, [(4, 4)] * 3)
        gradients = [0.8 * g / norm(g) for g in gradients]
        pair.step(gradients, lr=rate(step))
        pair.check(FLOAT64_TOLERANCE)


@pytest.mark.parametrize("limit", [None, 1.0, 8.0])
@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_parameters_of_several_dtypes_in_one_group(name: str, limit: float | None) -> None:
    """Computed in float32 and float64 beside each other, and clipped by one norm over all of them."""
    shapes: list[tuple[int, ...]] = [(4, 4), (3, 5), (4, 4), (5,), (0, 3), (2, 2), (3,)]
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float64, torch.float32, torch.float16, torch.bfloat16]
    start = arrays_of(0, shapes)
    options = {"max_grad_norm": limit, "weight_decay": 0.1, "master_weights": True}
    pair = Pair(name, [(start[:4], {}), (start[4:], {"weight_decay": 0.2})], options, dtype=dtypes)
    for step in range(STEPS):
        pair.step(arrays_of(step + 1, shapes), lr=rate(step))
        pair.check(FLOAT32_TOLERANCE)
        if limit is None:  # with a limit, all share one factor that float32 norms went into
            for index in (1, 3):
                pair.compare(index, "weights", pair.weights()[index], pair.reference.weights[index], FLOAT64_TOLERANCE)
