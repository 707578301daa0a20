"""LAMB and LARS in plain numpy float64: the equations, one line each, sharing no code with the library.

A parameter is one array. `lamb_step` and `lars_step` return what one step makes of it; `Reference` carries arrays, groups and
states through many steps. Sources: You et al. 2019 (arXiv 1904.00962, Algorithm 2; its LARS with an averaged momentum is
Algorithm 1), You et al. 2017 (arXiv 1708.03888, equations 5 and 6), and NVLAMB's clipping of the global gradient norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """Every hyperparameter of both optimizers; LAMB reads `betas`, LARS `momentum` and what follows it."""

    lr: float = 1e-3
    eps: float = 1e-6
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    bias_correction: bool = True
    momentum: float = 0.9
    trust_coefficient: float | None = None
    nesterov: bool = False
    lr_in_momentum: bool = True
    trust_norm: str = "gradient"
    weight_norm_clip: tuple[float, float] | None = None
    trust_ratio_clip: tuple[float, float] | None = None
    trust_clip: str | None = None
    dampening: float = 0.0
    max_grad_norm: float | None = None
    exclude_1d: bool = True
    layer_adaptation: bool = True
    maximize: bool = False


@dataclass
class Result:
    """What one step made of one parameter: new weights, new state, and the three numbers of `layer_stats()`."""

    weight: Array
    state: dict[str, Any]
    weight_norm: float
    update_norm: float
    trust_ratio: float


def norm(x: Array) -> float:
    """The Euclidean norm, rounded once (`fsum` adds exactly); squares of numbers beyond 1e154 would overflow."""
    return math.sqrt(math.fsum(float(value) ** 2 for value in x.ravel()))


def clip(value: float, bounds: tuple[float, float] | None) -> float:
    """`value` moved into [low, high], or as it is without bounds."""
    return value if bounds is None else min(max(value, bounds[0]), bounds[1])


def larc(ratio: float, o: Options) -> float:
    """LARC's clip: the layer's rate, lr times what this returns, is the smaller one of the ratio and lr."""
    if o.trust_clip is None:
        return ratio
    return min(ratio, o.lr) / o.lr if o.lr > 0 else 1.0


def round_to_bfloat16(x: Array) -> Array:
    """Round to the nearest bfloat16, ties to even: a float32 whose lower 16 bits are zero (finite numbers only)."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def lamb_step(w: Array, g: Array, state: dict[str, Any], o: Options) -> Result:
    """One LAMB step of one parameter; `state` holds `step`, `exp_avg` (m) and `exp_avg_sq` (v), or is empty."""
    beta1, beta2 = o.betas
    t = state.get("step", 0) + 1
    m = beta1 * state.get("exp_avg", np.zeros_like(w)) + (1 - beta1) * g
    v = beta2 * state.get("exp_avg_sq", np.zeros_like(w)) + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t) if o.bias_correction else m
    v_hat = v / (1 - beta2**t) if o.bias_correction else v
    u = m_hat / (np.sqrt(v_hat) + o.eps) + o.weight_decay * w
    w_norm, u_norm = norm(w), norm(u)
    ratio = 1.0
    if o.layer_adaptation and w_norm != 0 and u_norm != 0:
        ratio = clip(clip(w_norm, o.weight_norm_clip) / u_norm, o.trust_ratio_clip)
    new_state = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    return Result(w - o.lr * ratio * u, new_state, w_norm, u_norm, ratio)


def lars_step(w: Array, g: Array, state: dict[str, Any], o: Options) -> Result:
    """One LARS step of one parameter; `state` holds `step` and `momentum_buffer`, or is empty."""
    mu = o.momentum
    buf = state.get("momentum_buffer", np.zeros_like(w))
    w_norm = norm(w)
    ratio = 1.0
    if o.trust_norm == "momentum":
        eta = 1.0 if o.trust_coefficient is None else o.trust_coefficient
        buf = mu * buf + (1 - mu) * (g + o.weight_decay * w)
        shown = norm(buf)
        if o.layer_adaptation and w_norm != 0 and shown != 0:
            ratio = larc(clip(eta * clip(w_norm, o.weight_norm_clip) / shown, o.trust_ratio_clip), o)
        new = w - o.lr * ratio * buf
    else:
        eta = 0.001 if o.trust_coefficient is None else o.trust_coefficient
        decayed = o.trust_norm == "decayed_gradient"
        shown = norm(g + o.weight_decay * w) if decayed else norm(g)
        taken = 1.0 if not state else 1 - o.dampening
        if o.layer_adaptation and w_norm != 0 and shown != 0:
            ratio = eta * clip(w_norm, o.weight_norm_clip) / (shown + (not decayed) * o.weight_decay * w_norm + o.eps)
            ratio = larc(clip(ratio, o.trust_ratio_clip), o)
        d = ratio * (g + o.weight_decay * w)
        if o.lr_in_momentum:
            buf = mu * buf + taken * o.lr * d
            new = w - (o.lr * d + mu * buf) if o.nesterov else w - buf
        else:
            buf = mu * buf + taken * d
            new = w - o.lr * (d + mu * buf) if o.nesterov else w - o.lr * buf
    return Result(new, {"step": state.get("step", 0) + 1, "momentum_buffer": buf}, w_norm, shown, ratio)


def options_of(base: Options, group: dict[str, Any], ndim: int) -> Options:
    """The options for one parameter: its group's own words win; where the group is silent, `exclude_1d` has its say."""
    excluded = base.exclude_1d and ndim <= 1
    implied = {"weight_decay": 0.0, "layer_adaptation": False} if excluded else {}
    return replace(base, **{**implied, **group})


@dataclass
class Reference:
    """Many parameters, step after step.

    Args:
        one_step: `lamb_step` or `lars_step`.
        base: the options given to the optimizer's constructor.
        groups: a list of (arrays, the group's own options).
        store: what storing a weight does to it (`round_to_bfloat16` for bfloat16 weights without a master copy).
    """

    one_step: Callable[[Array, Array, dict[str, Any], Options], Result]
    base: Options
    groups: Sequence[tuple[Sequence[Array], dict[str, Any]]]
    store: Callable[[Array], Array] = lambda x: x
    weights: list[Array] = field(init=False)
    states: list[dict[str, Any]] = field(init=False)
    last: list[Result | None] = field(init=False)
    skipped: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.weights = [np.array(array, dtype=np.float64) for arrays, _ in self.groups for array in arrays]
        self.group_of = [index for index, (arrays, _) in enumerate(self.groups) for _ in arrays]
        self.states = [{} for _ in self.weights]
        self.last = [None for _ in self.weights]

    def step(self, gradients: Sequence[Array | None], **now: Any) -> None:
        """One step; a gradient of None leaves its parameter out; `now` overrides options for this step (`lr=...`)."""
        present = [g for g in gradients if g is not None]
        if not all(np.isfinite(g).all() for g in present):
            self.skipped += 1
            return
        total = math.sqrt(math.fsum(norm(g) ** 2 for g in present))
        limit = self.base.max_grad_norm
        factor = limit / total if limit is not None and total > limit else 1.0
        sign = -1.0 if self.base.maximize else 1.0
        for i, g in enumerate(gradients):
            if g is None:
                continue
            w = self.weights[i]
            options = options_of(replace(self.base, **now), self.groups[self.group_of[i]][1], w.ndim)
            result = self.one_step(w, sign * factor * g, self.states[i], options)
            self.weights[i], self.states[i], self.last[i] = self.store(result.weight), result.state, result
