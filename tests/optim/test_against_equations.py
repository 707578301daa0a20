"""LAMB and LARS against their equations in plain numpy, over options, shapes, layouts and precisions."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_scale.optim import LAMB, LARS

from .pairs import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, SHAPES, STEPS, Pair, arrays_of, rate, to_numpy
from .reference import round_to_bfloat16

LAMB_OPTIONS: list[dict[str, Any]] = [
    {},
    {"fused": False},
    {"bias_correction": False},
    {"betas": (0.0, 0.5), "eps": 1e-3},
    {"betas": (0.7, 0.98), "weight_decay": 0.0},
    {"weight_decay": 0.5, "exclude_1d": False},
    {"weight_norm_clip": (0.5, 2.0)},
    {"weight_norm_clip": (3.0, 1e9), "bias_correction": False},
    {"trust_ratio_clip": (0.3, 0.6)},
    {"weight_norm_clip": (0.5, 2.0), "trust_ratio_clip": (0.1, 0.4), "exclude_1d": False},
    {"max_grad_norm": 1.0},
    {"max_grad_norm": 1e6},
    {"maximize": True, "weight_decay": 0.3},
    {"maximize": True, "max_grad_norm": 0.1, "exclude_1d": False, "weight_decay": 0.3},
]
LARS_OPTIONS: list[dict[str, Any]] = [
    {},
    {"fused": False, "weight_decay": 0.1},
    {"weight_decay": 0.1, "exclude_1d": False},
    {"weight_decay": 0.1, "eps": 0.5, "trust_coefficient": 0.02},
    {"momentum": 0.0, "weight_decay": 0.1},
    {"nesterov": True, "weight_decay": 0.1},
    {"lr_in_momentum": False, "weight_decay": 0.1},
    {"lr_in_momentum": False, "nesterov": True, "weight_decay": 0.1, "momentum": 0.5},
    {"weight_norm_clip": (0.5, 2.0), "weight_decay": 0.5},
    {"trust_coefficient": 1.0, "trust_ratio_clip": (0.3, 0.6), "weight_decay": 0.1},
    {"max_grad_norm": 1.0, "weight_decay": 0.1},
    {"max_grad_norm": 0.1, "maximize": True, "weight_decay": 0.3, "exclude_1d": False},
    {"maximize": True, "weight_decay": 0.3, "nesterov": True},
    {"trust_norm": "decayed_gradient", "weight_decay": 0.1},
    {"trust_norm": "decayed_gradient", "weight_decay": 0.5, "exclude_1d": False, "eps": 0.5, "nesterov": True},
    {"trust_norm": "decayed_gradient", "weight_decay": 0.1, "lr_in_momentum": False, "max_grad_norm": 0.3},
    {"trust_norm": "decayed_gradient", "weight_decay": 0.3, "maximize": True, "trust_ratio_clip": (1e-4, 1e-3)},
    {"trust_norm": "decayed_gradient", "weight_decay": 0.1, "trust_clip": "larc", "trust_coefficient": 0.02},
    {"trust_clip": "larc", "trust_coefficient": 0.02, "weight_decay": 0.1},
    {"trust_clip": "larc", "trust_coefficient": 0.02, "trust_ratio_clip": (0.0, 0.01), "lr_in_momentum": False},
    {"dampening": 0.4, "weight_decay": 0.1},
    {"dampening": -0.5, "weight_decay": 0.1, "lr_in_momentum": False, "trust_norm": "decayed_gradient"},
    {"trust_norm": "momentum", "trust_clip": "larc", "trust_coefficient": 0.03, "weight_decay": 0.1},
    {"trust_norm": "momentum"},
    {"trust_norm": "momentum", "weight_decay": 0.1, "eps": 0.5},
    {"trust_norm": "momentum", "weight_decay": 0.1, "exclude_1d": False, "momentum": 0.6},
    {"trust_norm": "momentum", "trust_coefficient": 0.3, "weight_norm_clip": (0.5, 2.0)},
    {"trust_norm": "momentum", "trust_coefficient": 3.0, "trust_ratio_clip": (0.3, 0.6), "weight_decay": 0.1},
    {"trust_norm": "momentum", "max_grad_norm": 0.2, "maximize": True, "weight_decay": 0.2},
]
ALL_OPTIONS = [("LAMB", o) for o in LAMB_OPTIONS] + [("LARS", o) for o in LARS_OPTIONS]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in o.items()) or 'defaults'}" for name, o in ALL_OPTIONS]


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS, ids=IDS)
def test_float64_follows_the_equations(name: str, options: dict[str, Any]) -> None:
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], options)
    for step in range(STEPS):
        pair.step(arrays_of(100 + step, SHAPES), lr=rate(step))
        pair.check(FLOAT64_TOLERANCE)


@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS, ids=IDS)
def test_float32_follows_the_equations(name: str, options: dict[str, Any]) -> None:
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], options, dtype=torch.float32)
    for step in range(STEPS):
        pair.step(arrays_of(100 + step, SHAPES), lr=rate(step))
        pair.check(FLOAT32_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), ALL_OPTIONS, ids=IDS)
def test_master_weights_follow_the_equations_in_float32(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], {**options, "master_weights": True}, dtype=dtype)
    for step in range(STEPS):
        pair.step(arrays_of(100 + step, SHAPES), lr=rate(step))
        pair.check(FLOAT32_TOLERANCE)
        for parameter in pair.parameters:
            state = pair.optimizer.state[parameter]
            assert all(value.dtype == torch.float32 for value in state.values())
            assert torch.equal(parameter.detach(), state["master"].to(dtype))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, o in ALL_OPTIONS if "fused" not in o][::3])
def test_bfloat16_without_master_is_the_rounded_step(name: str, options: dict[str, Any], layout: str) -> None:
    pair = Pair(
        name, [(arrays_of(0, SHAPES), {})], options, dtype=torch.bfloat16, layout=layout, store=round_to_bfloat16
    )
    for step in range(STEPS):
        pair.step(arrays_of(100 + step, SHAPES), lr=rate(step))
        for index, parameter in enumerate(pair.parameters):
            got, expected = to_numpy(parameter), pair.reference.weights[index]
            # Rounded from float32, a value next to the middle between two bfloat16 numbers may fall to either side.
            assert np.all(np.abs(got - expected) <= 2.0**-7 * np.abs(expected))
            assert np.count_nonzero(got != expected) <= 1 + got.size // 40
            pair.reference.weights[index] = got
            moments = {k: v for k, v in pair.optimizer.state[parameter].items() if k != "step"}
            assert moments and all(value.dtype == torch.float32 for value in moments.values())


@st.composite
def lamb_options(draw: st.DrawFn) -> dict[str, Any]:
    beta = st.sampled_from([0.0, 0.5, 0.9, 0.999])
    return draw(common_options()) | {
        "betas": (draw(beta), draw(beta)),
        "eps": draw(st.sampled_from([1e-8, 1e-6, 0.1])),
        "bias_correction": draw(st.booleans()),
    }


@st.composite
def lars_options(draw: st.DrawFn) -> dict[str, Any]:
    options = draw(common_options()) | {
        "trust_coefficient": draw(st.sampled_from([None, 0.001, 0.5, 1.0])),
        "trust_norm": draw(st.sampled_from(["gradient", "decayed_gradient", "momentum"])),
        "trust_clip": draw(st.sampled_from([None, "larc"])),
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.9])),
        "eps": draw(st.sampled_from([0.0, 1e-8, 0.1])),
    }
    if options["trust_norm"] != "momentum":
        options["lr_in_momentum"] = draw(st.booleans())
        options["nesterov"] = options["momentum"] > 0 and draw(st.booleans())
        dampens = options["momentum"] > 0 and not options["nesterov"]
        options["dampening"] = draw(st.sampled_from([0.0, 0.3])) if dampens else 0.0
    return options


@st.composite
def common_options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "weight_decay": draw(st.sampled_from([0.0, 0.01, 0.5])),
        "weight_norm_clip": draw(st.sampled_from([None, (0.0, 1.0), (2.0, 3.0)])),
        "trust_ratio_clip": draw(st.sampled_from([None, (0.0, 0.5), (0.9, 1.1)])),
        "max_grad_norm": draw(st.sampled_from([None, 0.1, 100.0])),
        "exclude_1d": draw(st.booleans()),
        "maximize": draw(st.booleans()),
    }


own_options = st.fixed_dictionaries(
    {},
    optional={
        "weight_decay": st.sampled_from([0.0, 0.2]),
        "layer_adaptation": st.booleans(),
    },
)
shapes = st.one_of(
    st.sampled_from([(), (1,), (0,), (0, 3), (1, 1), (2, 1, 3, 1)]),
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
)
layouts = st.sampled_from(["contiguous", "transposed", "strided", "channels_last"])
# How a parameter starts, and what gradients it gets.
starts = st.sampled_from(["normal", "normal", "zero", "tiny", "large"])
kinds = st.sampled_from(["normal", "normal", "zero", "zero_at_first", "sometimes_none", "tiny", "large"])
SIZES = {"normal": 1.0, "zero": 0.0, "tiny": 1e-6, "large": 1e4}


def gradient_of(kind: str, step: int, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray | None:
    values = rng.standard_normal(shape)
    if kind == "sometimes_none":
        return None if step in (0, 2, 3) else values
    if kind == "zero_at_first":
        return values * (step >= 2)
    return values * SIZES[kind]


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_float64_follows_the_equations_for_any_groups(name: str, data: st.DataObject) -> None:
    options = data.draw({"LAMB": lamb_options(), "LARS": lars_options()}[name], label="options")
    members = st.lists(st.tuples(shapes, starts, kinds), min_size=1, max_size=3)
    groups = data.draw(st.lists(st.tuples(members, own_options), min_size=1, max_size=3), label="groups")
    layout = data.draw(layouts, label="layout")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    held = [([rng.standard_normal(s) * SIZES[start] for s, start, _ in group], own) for group, own in groups]
    flat = [(shape, kind) for group, _ in groups for shape, _, kind in group]
    pair = Pair(name, held, {**options, "fused": False}, layout=layout)
    strides = [p.stride() for p in pair.parameters]
    for step in range(5):
        pair.step([gradient_of(kind, step, rng, shape) for shape, kind in flat], lr=rate(step))
        # Where u almost cancels, a ratio that is not clipped amplifies the roundings of the steps before.
        pair.check(10 * FLOAT64_TOLERANCE)
    assert [p.stride() for p in pair.parameters] == strides


@pytest.mark.parametrize("clip", [None, (0.5, 0.9)])
@pytest.mark.parametrize("which", ["weights", "gradients", "both"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("LAMB", {"weight_decay": 0.1}), ("LAMB", {"weight_decay": 0.0}), ("LARS", {"weight_decay": 0.1}),
     ("LARS", {"trust_norm": "momentum", "trust_coefficient": 0.2})],
)  # fmt: skip
def test_ratio_is_one_where_a_norm_is_zero_whatever_the_clips(
    name: str, options: dict[str, Any], which: str, clip: tuple[float, float] | None
) -> None:
    start = np.zeros((3, 2)) if which != "gradients" else np.ones((3, 2))
    gradient = np.zeros((3, 2)) if which != "weights" else np.full((3, 2), 2.0)
    options = {**options, "trust_ratio_clip": clip, "weight_norm_clip": clip}
    pair = Pair(name, [([start], {})], options)
    pair.step([gradient], lr=0.25)
    pair.check(FLOAT64_TOLERANCE)
    decayed = which == "gradients" and name == "LAMB" and options["weight_decay"] > 0  # u = λw is not 0
    assert (float(pair.optimizer.layer_stats()["0.0"].trust_ratio) == 1.0) != decayed
    assert np.isfinite(to_numpy(pair.parameters[0])).all()


def test_lamb_by_hand() -> None:
    """w = (3, 4) as a matrix, g = (1, -1), t = 1: m̂ = g, v̂ = 1, u = g/(1 + 1) + w/10 = (0.8, -0.1), ratio = 5/√0.65."""
    parameter = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    parameter.grad = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    optimizer = LAMB([parameter], lr=0.5, eps=1.0, weight_decay=0.1)
    optimizer.step()
    ratio = 5 / 0.65**0.5
    assert parameter.detach().tolist()[0] == pytest.approx([3 - 0.5 * ratio * 0.8, 4 + 0.5 * ratio * 0.1], rel=1e-14)
    stats = optimizer.layer_stats()["0.0"]
    assert float(stats.trust_ratio) == pytest.approx(ratio, rel=1e-15)
    assert (float(stats.weight_norm), float(stats.update_norm)) == pytest.approx((5.0, 0.65**0.5), rel=1e-15)


def test_lars_by_hand() -> None:
    """w = (3, 4), g = (6, 8), λ = 0.5, η = 0.1: ratio = 0.1·5/(10 + 2.5) = 0.04 and d = 0.04·(7.5, 10) = (0.3, 0.4)."""
    parameter = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    parameter.grad = torch.tensor([[6.0, 8.0]], dtype=torch.float64)
    optimizer = LARS([parameter], lr=2.0, weight_decay=0.5, trust_coefficient=0.1, eps=0.0)
    optimizer.step()
    assert parameter.detach().tolist()[0] == pytest.approx([3 - 0.6, 4 - 0.8], rel=1e-15)
    stats = optimizer.layer_stats()["0.0"]
    assert float(stats.trust_ratio) == pytest.approx(0.04, rel=1e-15)
    assert (float(stats.weight_norm), float(stats.update_norm)) == pytest.approx((5.0, 10.0), rel=1e-15)


@pytest.mark.parametrize(
    ("schedule", "same"), [([0.1] * 6, True), (list(accumulate([0.1, 0.2, 0.3, 0.1, 0.05, 0.01])), False)]
)
@pytest.mark.parametrize("nesterov", [False, True])
def test_where_lr_enters_the_momentum_matters_under_a_schedule_only(
    schedule: list[float], same: bool, nesterov: bool
) -> None:
    start = arrays_of(0, [(4, 3)])
    options = {"weight_decay": 0.1, "nesterov": nesterov, "trust_coefficient": 0.1}
    inside = Pair("LARS", [(start, {})], {**options, "lr_in_momentum": True})
    outside = Pair("LARS", [(start, {})], {**options, "lr_in_momentum": False})
    for step, lr in enumerate(schedule):
        for pair in (inside, outside):
            pair.step(arrays_of(step + 1, [(4, 3)]), lr=lr)
    a, b = to_numpy(inside.parameters[0]), to_numpy(outside.parameters[0])
    assert np.allclose(a, b, rtol=1e-12, atol=1e-13) is same


def test_a_large_half_precision_gradient_has_its_true_norm() -> None:
    """The squares (90,000) and their sum are beyond float16's 65,504."""
    start = np.ones((32, 32))
    pair = Pair("LARS", [([start], {})], {"max_grad_norm": 10.0, "master_weights": True}, dtype=torch.float16)
    pair.step([np.full((32, 32), 300.0)], lr=0.5)
    pair.check(FLOAT32_TOLERANCE)
    assert int(pair.optimizer.skipped_steps) == 0
