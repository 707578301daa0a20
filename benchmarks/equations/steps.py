"""AdamW, SGD, LAMB and LARS: one step of one parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, TRUST_COEFFICIENT, WEIGHT_DECAY

Step = Callable[[Tensor, Tensor, dict[str, Any], float], Tensor]
"""(weight, gradient, state, learning rate) to the new weight; the state is replaced in place."""


def adamw(*, eps: float = EPS["AdamW"]) -> Step:
    """Loshchilov & Hutter 2017, arXiv 1711.05101, as torch writes it."""

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        m, v = _moments(g, state)
        return w - lr * _decay(w) * w - lr * _corrected(m, v, state["step"], eps)

    return step


def sgd() -> Step:
    """With momentum; the first gradient is the first momentum."""

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        d = g + _decay(w) * w
        buffer: Tensor = MOMENTUM * state["buffer"] + d if state else d
        state["buffer"] = buffer
        return w - lr * buffer

    return step


def lamb(
    *,
    vectors_adapt: bool = False,
    correction: str = "moments",
    largest_weight_norm: float = float("inf"),
    decoupled: bool = False,
) -> Step:
    """You et al. 2019, arXiv 1904.00962, algorithm 2, with bias correction.

    Args:
        vectors_adapt: Whether parameters of one dimension have a ratio; practice leaves them out.
        correction: Of the bias: of the "moments", as the paper has it; or (what other libraries do) of the "rate" for both
            moments, of the rate for the "first" moment alone, or "none".
        largest_weight_norm: A bound on ‖w‖ that the paper has not.
        decoupled: Decay as AdamW's, outside of the ratio, which the paper has not.
    """

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        m, v = _moments(g, state)
        t = state["step"]
        first, second = 1 - BETAS[0] ** t, 1 - BETAS[1] ** t
        if decoupled:
            w = w - lr * _decay(w) * w
        u = _corrected(m, v, t, EPS["LAMB"]) if correction == "moments" else m / (v.sqrt() + EPS["LAMB"])
        if not decoupled:
            u = u + _decay(w) * w
        lr *= {"moments": 1.0, "rate": second**0.5 / first, "first": 1 / first, "none": 1.0}[correction]
        if w.dim() > 1 or vectors_adapt:
            u = u * w.norm().clamp(max=largest_weight_norm) / u.norm()
        return w - lr * u

    return step


def lars() -> Step:
    """You et al. 2017, arXiv 1708.03888; vectors have no ratio."""

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        d = g + _decay(w) * w
        if w.dim() > 1:
            d = d * TRUST_COEFFICIENT * w.norm() / (g.norm() + _decay(w) * w.norm() + EPS["LARS"])
        buffer: Tensor = MOMENTUM * state.get("buffer", torch.zeros_like(w)) + lr * d
        state["buffer"] = buffer
        return w - buffer

    return step


def lars_momentum() -> Step:
    """The same group's LARS of 2019, arXiv 1904.00962, algorithm 1: the ratio is that of the averaged momentum."""

    def step(w: Tensor, g: Tensor, state: dict[str, Any], lr: float) -> Tensor:
        fresh = (1 - MOMENTUM) * (g + _decay(w) * w)
        m: Tensor = MOMENTUM * state.get("buffer", torch.zeros_like(w)) + fresh
        state["buffer"] = m
        return w - lr * m * (w.norm() / m.norm() if w.dim() > 1 else 1.0)

    return step


def _decay(w: Tensor) -> float:
    return WEIGHT_DECAY if w.dim() > 1 else 0.0


def _moments(g: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    m, v = state.get("m", torch.zeros_like(g)), state.get("v", torch.zeros_like(g))
    state["step"] = state.get("step", 0) + 1
    state["m"], state["v"] = m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
    return m, v


def _corrected(m: Tensor, v: Tensor, t: int, eps: float) -> Tensor:
    return m / (1 - BETAS[0] ** t) / ((v / (1 - BETAS[1] ** t)).sqrt() + eps)
