"""How the plain torch kernels leave everything as it was on a non-finite step without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.work import Guard


def guarded_grads(grads: list[Tensor], guard: Guard) -> list[Tensor]:
    """The gradients clipped, and zero on a non-finite step; new tensors where anything changes."""
    if guard.clip is not None:
        clip = guard.clip.to(device=grads[0].device, dtype=grads[0].dtype)
        grads = list(torch._foreach_mul(grads, clip))
    if guard.finite is not None:
        # Zero times NaN is NaN, so the value is chosen, not multiplied. There is no multi-tensor form of this.
        finite = guard.finite.to(grads[0].device)
        grads = [torch.where(finite, g, 0.0) for g in grads]
    return grads


def unless_skipped(value: float | Tensor, skipped: float, guard: Guard, like: Tensor) -> float | Tensor:
    """``value``, or ``skipped`` on a non-finite step: a 0-d tensor where the step is tested, else ``value`` itself."""
    if guard.finite is None:
        return value
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return torch.where(guard.finite.to(like.device), value, torch.full_like(value, skipped))
