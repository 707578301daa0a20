"""The 8-bit optimizers in plain numpy: float64 steps, float32 moments quantized by looking at every code.

LAMB and LARS are `reference.py`'s; AdamW and SGD are written here (torch's documentation, algorithms AdamW and SGD).
Nothing is shared with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .pairs import FLOAT32_TOLERANCE, lay_out, to_numpy
from .quantization import tables
from .reference import Array, Options, lamb_step, lars_step, norm, options_of

SIGNED = {"exp_avg": True, "exp_avg_sq": False, "momentum_buffer": True}

Step = Callable[[Array, Array, dict[str, Any], dict[str, Any]], tuple[Array, dict[str, Any]]]


def adamw_step(w: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    lr, t = o["lr"], state.get("step", 0) + 1
    m = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * g
    v = beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * g**2
    w = w - lr * o.get("weight_decay", 1e-2) * w
    w = w - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + o.get("eps", 1e-8))
    return w, {"step": t, "exp_avg": m, "exp_avg_sq": v}


def sgd_step(w: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
    mu = o.get("momentum", 0.9)
    g = g + o.get("weight_decay", 0.0) * w
    if mu == 0:
        return w - o["lr"] * g, {}
    first = state.get("step", 0) == 0
    buf = g if first else mu * state["momentum_buffer"] + (1 - o.get("dampening", 0.0)) * g
    return w - o["lr"] * (g + mu * buf if o.get("nesterov") else buf), {
        "step": state.get("step", 0) + 1,
        "momentum_buffer": buf,
    }


def layerwise(one_step: Any, **defaults: Any) -> Step:
    def step(w: Array, g: Array, state: dict[str, Any], o: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        result = one_step(w, g, state, options_of(Options(**{**defaults, **o}), {}, w.ndim))
        return result.weight, result.state

    return step


STEPS: dict[str, Step] = {
    "LAMB8bit": layerwise(lamb_step, eps=1e-6, weight_decay=0.01),
    "LARS8bit": layerwise(lars_step, eps=1e-8),
    "AdamW8bit": adamw_step,
    "SGD8bit": sgd_step,
}


@dataclass
class Coded:
    """A moment in 8 bits."""

    codes: NDArray[np.int64]
    absmax: NDArray[np.float64]
    signed: bool

    def read(self, shape: tuple[int, ...]) -> Array:
        return tables.dequantize(self.codes, self.absmax, self.signed).reshape(shape)


@dataclass
class Twin:
    """The library's optimizer and numpy's, side by side.

    Both take each step from the same weights and the same stored moments: a number that lies on the middle of two codes
    up to float32's rounding may go to either, so after the comparison the reference goes on from the library's codes.
    """

    name: str
    kind: Any
    start: list[Array]
    options: dict[str, Any]
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    one_in: int = 2000
    """At most one code in so many may differ (by one)."""
    flips: int = 0
    states: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = [nn.Parameter(lay_out(a, self.layout, self.dtype)) for a in self.start]
        self.optimizer = self.kind(self.parameters, **{"lr": 1e-3, **self.options})
        self.states = [{} for _ in self.parameters]
        own = {"lr": 1e-3, **self.options}
        self.clip = own.pop("max_grad_norm", None)
        self.sign = -1.0 if own.pop("maximize", False) else 1.0
        own.pop("master_weights", None)
        self.own = own

    def step(self, gradients: list[Array], lr: float) -> None:
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = lay_out(g, self.layout, p.dtype)
        before = [to_numpy(self.optimizer.state[p].get("master", p)) for p in self.parameters]
        seen = [to_numpy(p.grad) for p in self.parameters if p.grad is not None]
        total = math.sqrt(sum(norm(g) ** 2 for g in seen))
        factor = self.sign * (min(1.0, self.clip / total) if self.clip else 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        for index, (p, w, g) in enumerate(zip(self.parameters, before, seen, strict=True)):
            held = {k: v.read(w.shape) if isinstance(v, Coded) else v for k, v in self.states[index].items()}
            new, state = STEPS[self.name](w, factor * g, held, {**self.own, "lr": lr})
            self.compare(index, p, (w, held), (new, state))

    def compare(
        self, index: int, p: nn.Parameter, before: tuple[Array, dict[str, Any]], after: tuple[Array, dict[str, Any]]
    ) -> None:
        (old, held), (new, state) = before, after
        own = self.optimizer.state[p]
        got = to_numpy(own.get("master", p))
        allowed = FLOAT32_TOLERANCE * max(np.abs(old).max(), np.abs(new - old).max())
        np.testing.assert_allclose(got, new, rtol=0, atol=allowed, err_msg=f"weights of parameter {index}")
        kept: dict[str, Any] = {"step": state["step"]} if "step" in state else {}
        assert "step" not in own or float(own["step"]) == state["step"]
        for key in SIGNED.keys() & own.keys():
            value = state[key]
            if p.numel() >= 4096:
                kept[key] = self.compare_codes(key, own, value)
            else:
                allowed = FLOAT32_TOLERANCE * max(np.abs(value).max(), np.abs(held.get(key, 0.0)).max())
                np.testing.assert_allclose(to_numpy(own[key]), value, rtol=0, atol=allowed, err_msg=key)
                kept[key] = to_numpy(own[key])
        self.states[index] = kept

    def compare_codes(self, key: str, own: dict[str, torch.Tensor], value: Array) -> Coded:
        codes, absmax = own[key], own[f"{key}_absmax"]
        assert codes.dtype == torch.uint8 and codes.shape == value.shape and codes.is_contiguous()
        assert absmax.dtype == torch.float32 and absmax.shape == (-(-value.size // 256),)
        expected, scales = tables.quantize(value.reshape(-1).astype(np.float32), SIGNED[key])
        np.testing.assert_allclose(absmax.numpy(), scales, rtol=FLOAT32_TOLERANCE, atol=0)
        got = codes.reshape(-1).long().numpy()
        apart = np.abs(got - expected)
        assert apart.max() <= 1, f"{key}: codes {apart.max()} apart"
        assert np.count_nonzero(apart) <= 1 + value.size // self.one_in, f"{key}: {np.count_nonzero(apart)} other codes"
        self.flips += int(np.count_nonzero(apart))
        return Coded(got, absmax.double().numpy(), SIGNED[key])
