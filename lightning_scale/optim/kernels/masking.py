"""How the plain torch kernels leave everything as it was on a non-finite step without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Guard

# x + -0.0 and x - 0.0 are x for every x, also for both zeros; x + 0.0 turns -0.0 into 0.0.
NOTHING_TO_ADD = -0.0
NOTHING_TO_SUBTRACT = 0.0


def guarded_grads(grads: list[Tensor], guard: Guard) -> list[Tensor]:
    """The gradients clipped, and zero on a non-finite step; new tensors where anything changes."""
    if guard.clip is not None:
        clip = guard.clip.to(device=grads[0].device, dtype=grads[0].dtype)
        grads = list(torch._foreach_mul(grads, clip))
    return zero_if_skipped(grads, guard, NOTHING_TO_ADD)


def zero_if_skipped(tensors: list[Tensor], guard: Guard, zero: float) -> list[Tensor]:
    """The tensors, or on a non-finite step the zero that leaves every bit of what it meets."""
    if guard.finite is None:
        return tensors
    # Zero times NaN is NaN, so the value is chosen, not multiplied. There is no multi-tensor form of this.
    finite = guard.finite.to(tensors[0].device)
    return [torch.where(finite, t, zero) for t in tensors]


def unless_skipped(value: float | Tensor, skipped: float, guard: Guard, like: Tensor) -> float | Tensor:
    """``value``, or ``skipped`` on a non-finite step: a 0-d tensor where the step is tested, else ``value`` itself."""
    if guard.finite is None:
        return value
    if not isinstance(value, Tensor):  # filled there: for a copy the host would wait
        value = torch.full((), value, dtype=like.dtype, device=like.device)
    value = value.to(like.device, like.dtype)
    return torch.where(guard.finite.to(like.device), value, torch.full_like(value, skipped))
