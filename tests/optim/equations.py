"""Every optimizer's step in float64 numpy, one parameter at a time, sharing no code with the library: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Any]
Options = Mapping[str, Any]
"""Of the parameter's group."""
Step = Callable[[Array, Array, State, Options], Array]
"""(weight, gradient, state, options) to the new weight; the state is changed in place, and empty at first."""


def signed(g: Array, o: Options) -> Array:
    """The gradient, downhill."""
    return -g if o["maximize"] else g


def adams_direction(g: Array, state: State, o: Options) -> Array:
    """m̂ / (√v̂ + ε)."""
    beta1, beta2 = o["betas"]
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g * g
    if o.get("bias_correction", True):
        m, v = m / (1 - beta1**t), v / (1 - beta2**t)
    direction: Array = m / (np.sqrt(v) + o["eps"])
    return direction


def ratio(w: Array, other: float, below: float, o: Options, coefficient: float = 1.0) -> float:
    """The trust ratio of a matrix; 1 of a vector, or where a norm is 0."""
    norm = float(np.linalg.norm(w))
    if w.ndim < 2 or norm == 0 or other == 0:
        return 1.0
    low, high = o["weight_norm_clip"] or (0.0, np.inf)
    value = coefficient * min(max(norm, low), high) / below
    low, high = o["trust_ratio_clip"] or (0.0, np.inf)
    value = min(max(value, low), high)
    return min(value / o["lr"], 1.0) if o.get("trust_clip") else value


def decay(w: Array, o: Options) -> float:
    """λ of a matrix; vectors have none."""
    return float(o["weight_decay"]) if w.ndim > 1 else 0.0


# steps


def lamb(w: Array, g: Array, state: State, o: Options) -> Array:
    u = adams_direction(signed(g, o), state, o) + decay(w, o) * w
    norm = float(np.linalg.norm(u))
    return w - o["lr"] * ratio(w, norm, norm, o) * u


def lars(w: Array, g: Array, state: State, o: Options) -> Array:
    g, mu, lr = signed(g, o), o["momentum"], o["lr"]
    d = g + decay(w, o) * w
    if o["trust_norm"] == "momentum":
        m = state["m"] = mu * state.get("m", 0.0) + (1 - mu) * d
        norm = float(np.linalg.norm(m))
        return w - lr * ratio(w, norm, norm, o) * m
    norm = float(np.linalg.norm(g if o["trust_norm"] == "gradient" else d))
    below = norm + (decay(w, o) * float(np.linalg.norm(w)) if o["trust_norm"] == "gradient" else 0.0) + o["eps"]
    d = d * ratio(w, norm, below, o, o["trust_coefficient"] or 0.001)
    d = d * lr if o["lr_in_momentum"] else d
    m = state["m"] = mu * state["m"] + (1 - o["dampening"]) * d if state else d
    step = d + mu * m if o["nesterov"] else m
    return w - (step if o["lr_in_momentum"] else lr * step)


def adamw(w: Array, g: Array, state: State, o: Options) -> Array:
    return w - o["lr"] * o["weight_decay"] * w - o["lr"] * adams_direction(signed(g, o), state, o)


def sgd(w: Array, g: Array, state: State, o: Options) -> Array:
    d = signed(g, o) + o["weight_decay"] * w
    if not o["momentum"]:
        return w - o["lr"] * d
    m = state["m"] = o["momentum"] * state["m"] + (1 - o["dampening"]) * d if state else d
    return w - o["lr"] * (d + o["momentum"] * m if o["nesterov"] else m)


EQUATIONS: dict[str, Step] = {
    "LAMB": lamb,
    "LARS": lars,
    "AdamW8bit": adamw,
    "LAMB8bit": lamb,
    "LARS8bit": lars,
    "SGD8bit": sgd,
}
"""By the optimizer's name. (Small layers keep their moments in float32, whatever the optimizer.)"""
