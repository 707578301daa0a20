"""Does an optimizer compute what it claims? A few steps beside the equations in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.equations.rules import Rule

STEPS = 5


@dataclass(frozen=True)
class Verdict:
    """How far from a rule.

    Args:
        rule: Its name.
        error: ‖what came out - what should‖ / ‖the way that the weights should go‖, of the worst parameter.
        bound: The most that it may be.
    """

    rule: str
    error: float
    bound: float

    @property
    def right(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class Trace:
    """What an optimizer did: the weights at first, the gradients of each step, the weights in the end; in float64."""

    start: list[Tensor]
    gradients: list[list[Tensor]]
    end: list[Tensor]
    writes_gradients: bool
    """Whether a step left other gradients than it was given."""


def trace(
    make: Callable[[Sequence[nn.Parameter], float], Any],
    rate: float,
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> Trace:
    """Let an optimizer take `STEPS` steps on random weights and gradients, new ones at each step."""
    random = torch.Generator().manual_seed(seed)

    def numbers(scale: float) -> list[Tensor]:
        # Each parameter in a size of its own, so that ratios and bounds on norms show.
        return [scale * 3.0 ** (i % 4) * torch.randn(s, generator=random) for i, s in enumerate(shapes)]

    parameters = [nn.Parameter(w.to(device, dtype)) for w in numbers(0.1)]
    optimizer = make(parameters, rate)
    start, gradients, writes = _float64(parameters), [], False
    for _ in range(STEPS):
        for p, g in zip(parameters, numbers(0.3), strict=True):
            p.grad = g.to(device, dtype)
        given = _float64(p.grad for p in parameters if p.grad is not None)
        optimizer.step()
        gradients.append(given)
        left = _float64(p.grad for p in parameters if p.grad is not None)
        writes = writes or any(not torch.equal(a, b) for a, b in zip(given, left, strict=True))
    return Trace(start, gradients, _float64(_weight(optimizer, p) for p in parameters), writes)


def judge(seen: Trace, rule: Rule) -> Verdict:
    """Hold it to a rule."""
    errors = []
    for i, (start, end) in enumerate(zip(seen.start, seen.end, strict=True)):
        if start.numel() < rule.from_elements:
            continue
        w = start
        state: dict[str, Any] = {}
        for gradients in seen.gradients:
            w = rule.step(w, gradients[i], state, rule.rate)
        errors.append(float((end - w).norm() / (w - start).norm()))
    worst = max(errors) if all(map(isfinite, errors)) else inf
    return Verdict(rule.name, worst, rule.bound)


def _weight(optimizer: Any, p: nn.Parameter) -> Tensor:
    """What the optimizer holds as the true weight: its master copy where there is one."""
    master = optimizer.state[p].get("master")
    return master if isinstance(master, Tensor) else p


def _float64(tensors: Any) -> list[Tensor]:
    return [t.detach().to("cpu", torch.float64, copy=True) for t in tensors]
