"""What docs/coming_from.md says of self-supervised repositories' LARS, and of DeepSpeed's LAMB: each row's settings take
the steps of their rule, which is written here from their equations, in float64 numpy.

Every rule takes the weight, the gradient, the state (a dict, empty at first), the rate and the decay, and returns the new weight.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_scale.optim import LAMB, LARS

Array = NDArray[np.float64]
Rule = Callable[[Array, Array, dict[str, Any], float, float], Array]

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text()
MOMENTUM = 0.9
RATES = [0.0004, 0.003, 0.02, 0.05, 0.011, 0.3]
"""Around the ratios, so that LARC's clip is on both sides, and no two the same."""


def norm(x: Array) -> float:
    return float(np.sqrt((x * x).sum()))


def heavy_ball(state: dict[str, Any], d: Array, dampening: float = 0.0) -> Array:
    """torch's SGD: the first gradient is the buffer, later ones go in dampened."""
    buffer: Array = MOMENTUM * state["buffer"] + (1 - dampening) * d if state else d
    state["buffer"] = buffer
    return buffer


def bolts(dampening: float, nesterov: bool, without_decay_no_ratio: bool, clip: bool, exclude: bool) -> Rule:
    """lightning-bolts, from which lightly and solo-learn come: solo-learn has the clip and the exclusion by dimension."""

    def step(w: Array, g: Array, state: dict[str, Any], lr: float, decay: float) -> Array:
        adapts = not (exclude and w.ndim == 1) and not (without_decay_no_ratio and decay == 0)
        d = g
        if adapts and norm(w) != 0 and norm(g) != 0:
            local = 0.001 * norm(w) / (norm(g) + decay * norm(w) + 1e-8)
            d = (g + decay * w) * (min(local / lr, 1.0) if clip else local)
        buffer = heavy_ball(state, d, dampening)
        return w - lr * (d + MOMENTUM * buffer if nesterov else buffer)

    return step


def larc(clip: bool, coefficient: float) -> Rule:
    """apex' LARC around torch's SGD; VISSL's ``sgd`` with ``use_larc``."""

    def step(w: Array, g: Array, state: dict[str, Any], lr: float, decay: float) -> Array:
        if norm(w) != 0 and norm(g) != 0:
            local = coefficient * norm(w) / (norm(g) + decay * norm(w) + 1e-8)
            g = (g + decay * w) * (min(local / lr, 1.0) if clip else local)
        return w - lr * heavy_ball(state, g)

    return step


def fair(excluded: Callable[[Array], bool], nesterov: bool = False) -> Rule:
    """VICReg, Barlow Twins, DINO, MoCo v3, MAE, VISSL's ``lars``: what is excluded has no decay and no ratio."""

    def step(w: Array, g: Array, state: dict[str, Any], lr: float, decay: float) -> Array:
        d = g
        if not excluded(w):
            d = g + decay * w
            d = d * (0.001 * norm(w) / norm(d) if norm(w) > 0 and norm(d) > 0 else 1.0)
        mu = MOMENTUM * state.get("mu", 0.0) + d
        state["mu"] = mu
        return w - lr * (d + MOMENTUM * mu if nesterov else mu)

    return step


def simclr(classic: bool) -> Rule:
    """TensorFlow's; variables whose names have "bias" or "batch_normalization" in them, here vectors, are left out of both."""

    def step(w: Array, g: Array, state: dict[str, Any], lr: float, decay: float) -> Array:
        excluded = w.ndim <= 1
        g = g if excluded else g + decay * w
        if classic:
            ratio = 1.0 if excluded or norm(w) == 0 or norm(g) == 0 else 0.001 * norm(w) / norm(g)
            state["v"] = MOMENTUM * state.get("v", 0.0) + lr * ratio * g
            new: Array = w - state["v"]
            return new
        v = state["v"] = MOMENTUM * state.get("v", 0.0) + g
        ratio = 1.0 if excluded or norm(w) == 0 or norm(v) == 0 else 0.001 * norm(w) / norm(v)
        return w - lr * ratio * v

    return step


def one_dimension(w: Array) -> bool:
    return w.ndim == 1


# By the first cell of the page's table.
RULES: dict[str, Rule] = {
    "lightly, bolts: `LARS`": bolts(0.0, False, True, False, False),
    "lightly, bolts: `LARS(nesterov=True)`": bolts(0.0, True, True, False, False),
    "lightly, bolts: `LARS(dampening=0.3)`": bolts(0.3, False, True, False, False),
    "solo-learn: `LARS`": bolts(0.0, False, False, False, False),
    "solo-learn: `LARS(exclude_bias_n_norm_lars=True)`": bolts(0.0, False, False, False, True),
    "solo-learn: `LARS(exclude_bias_n_norm_lars=True, clip_lars_lr=True)`": bolts(0.0, False, False, True, True),
    "apex: `LARC(SGD, clip=False)`": larc(False, 0.02),
    "apex: `LARC(SGD)`": larc(True, 0.02),
    "VISSL: `sgd` with `use_larc`, `clip: false`, `trust_coefficient: 0.001`": larc(False, 0.001),
    "VISSL: `lars`": fair(lambda w: False),
    "VICReg, Barlow Twins, DINO: `LARS`": fair(one_dimension),
    "MoCo v3, MAE: `LARS`": fair(lambda w: w.ndim <= 1),
    "MoCo v3: `LARS(nesterov=True)`": fair(lambda w: w.ndim <= 1, nesterov=True),
    "SimCLR: `LARSOptimizer`": simclr(True),
    "SimCLR: `LARSOptimizer(classic_momentum=False)`": simclr(False),
}


def section(heading: str) -> str:
    """The part of the page under a heading that begins so."""
    return PAGE.partition(f"\n## {heading}")[2].partition("\n## ")[0]


def rows(heading: str) -> dict[str, dict[str, Any]]:
    """The first cells of the table below a heading, and the options of the optimizer in the second."""
    found = {}
    for first, second in re.findall(r"^\| (.+?) \| (.+?) \|$", section(heading), re.M):
        if call := re.match(r"`((?:LARS|LAMB)\(.*?\))`", second):
            keywords = ast.parse(call[1], mode="eval").body.keywords  # type: ignore[attr-defined]
            found[first] = {k.arg: ast.literal_eval(k.value) for k in keywords}
    return found


ROWS = rows("Self-supervised learning: LARS")
DECAY = 0.3
# Matrices, a convolution, a bias and a norm's weight.
SHAPES = [(6, 5), (4, 3, 2, 2), (6,), (4,)]


def arrays(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in SHAPES]


def differences(optimizer: Any, params: list[nn.Parameter], step: Callable[[int, Array, Array, float], Array]) -> float:
    """The largest difference, as a share of the largest weight, after steps at every one of the rates."""
    own = [p.detach().double().numpy().copy() for p in params]
    base = [group["lr"] for group in optimizer.param_groups]
    for number, rate in enumerate(RATES):
        for i, (p, g) in enumerate(zip(params, arrays(100 + number), strict=True)):
            p.grad = torch.from_numpy(g)
            own[i] = step(i, own[i], g, rate)
        for group, factor in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
    return max(float(np.abs(p.detach().numpy() - w).max() / np.abs(w).max()) for p, w in zip(params, own, strict=True))


def test_every_row_has_its_rule() -> None:
    assert ROWS.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_the_rows_settings_take_their_steps(name: str) -> None:
    options = ROWS[name]
    params = [nn.Parameter(torch.from_numpy(array)) for array in arrays(0)]
    groups: list[dict[str, Any]] = [{"params": params}]
    decays = [DECAY] * len(params)
    if name.startswith("lightly"):  # its own way to leave biases and norms out: a group without decay
        groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0, "layer_adaptation": False}]
        decays = [DECAY, DECAY, 0.0, 0.0]
    if "classic_momentum" in name:  # as the page says of vectors
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 1 / (1 - MOMENTUM)}]
    optimizer = LARS(groups, lr=1.0, momentum=MOMENTUM, weight_decay=DECAY, **options)
    states: list[dict[str, Any]] = [{} for _ in params]
    apart = differences(optimizer, params, lambda i, w, g, lr: RULES[name](w, g, states[i], lr, decays[i]))
    assert apart <= 1e-12


def test_the_rules_are_not_one_rule() -> None:
    """No row's settings take another rule's steps, but where both rows say the same settings."""
    for name, rule in RULES.items():
        for other, options in ROWS.items():
            same = options == ROWS[name] or {name, other} <= {n for n in RULES if n.startswith(("VICReg", "MoCo v3, "))}
            if same or "lightly" in name or "lightly" in other or "classic" in other:
                continue
            params = [nn.Parameter(torch.from_numpy(array)) for array in arrays(0)]
            states: list[dict[str, Any]] = [{} for _ in params]
            optimizer = LARS(params, lr=1.0, momentum=MOMENTUM, weight_decay=DECAY, **options)
            apart = differences(optimizer, params, lambda i, w, g, lr: rule(w, g, states[i], lr, DECAY))  # noqa: B023
            assert apart > 1e-8, (name, other)


def fused_lamb(on_the_rate: bool) -> Callable[[Array, Array, dict[str, Any], float], Array]:
    """DeepSpeed's kernel: up to 0.19.8 the bias correction is on the rate, later on the moments, as in the paper."""

    def step(w: Array, g: Array, state: dict[str, Any], lr: float) -> Array:
        t = state["t"] = state.get("t", 0) + 1
        m = state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
        v = state["v"] = 0.999 * state.get("v", 0.0) + (1 - 0.999) * g * g
        first, second = 1 - 0.9**t, 1 - 0.999**t
        if on_the_rate:
            lr = lr * np.sqrt(second) / first
        else:
            m, v = m / first, v / second
        u = m / (np.sqrt(v) + 1e-8) + DECAY * w
        coefficient = min(max(norm(w) / norm(u), 0.01), 10.0)
        return w - lr * coefficient * u

    return step


@pytest.mark.parametrize("on_the_rate", [True, False])
def test_deepspeeds_fused_lamb(on_the_rate: bool) -> None:
    """By the settings in the page's section; those of the released kernel with a factor on the rate."""
    calls = re.findall(r"`LAMB\((bias_correction=.*?)\)`", section("DeepSpeed"))
    options = [
        {k.arg: ast.literal_eval(k.value) for k in ast.parse(f"f({call})", mode="eval").body.keywords}  # type: ignore[attr-defined]
        for call in calls
    ]
    assert [own["bias_correction"] for own in options] == [False, True]
    params = [nn.Parameter(torch.from_numpy(array)) for array in arrays(0)]
    optimizer = LAMB(params, lr=1.0, weight_decay=DECAY, **options[0 if on_the_rate else 1])
    states: list[dict[str, Any]] = [{} for _ in params]
    rule, taken = fused_lamb(on_the_rate), optimizer.step

    def with_factor() -> None:
        group = optimizer.param_groups[0]
        t = 1 + int(max((float(own["step"]) for own in optimizer.state.values()), default=0))
        group["lr"] *= np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        taken()

    if on_the_rate:
        optimizer.step = with_factor  # type: ignore[method-assign]
    assert differences(optimizer, params, lambda i, w, g, lr: rule(w, g, states[i], lr)) <= 1e-12
