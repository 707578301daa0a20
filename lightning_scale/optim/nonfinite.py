"""Which layers' gradients hold a NaN or an Inf. Plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def nonfinite(layers: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """Whether some element is NaN or Inf, without waiting for a device: [layers] bool.

    Args:
        layers: Of each layer: the tensors that hold it; there may be none, and they may be empty.
        device: Of the answer.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    for number, tensors in enumerate(layers):
        for t in tensors:
            if t.numel():
                kinds.setdefault((t.device, t.dtype), []).append((number, t))
    found: list[list[Tensor]] = [[] for _ in layers]
    for numbered in kinds.values():
        largest = torch.stack(torch._foreach_norm([t for _, t in numbered], math.inf))
        for (number, _), bad in zip(numbered, (~largest.isfinite()).to(device).unbind(), strict=True):
            found[number].append(bad)
    none = torch.zeros((), dtype=torch.bool, device=device)
    each = [none if not bad else bad[0] if len(bad) == 1 else torch.stack(bad).any() for bad in found]
    return torch.stack(each) if each else torch.zeros(0, dtype=torch.bool, device=device)
