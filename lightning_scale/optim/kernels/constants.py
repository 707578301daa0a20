"""Numbers of the host on the device, brought there without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.layout import Layout


def constant(layout: Layout, name: str, values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a 1-D tensor, kept with the layout while they stay the same: read only."""
    key = (name, dtype, device)
    known = layout.cache.get(key)
    values = list(values)
    if known is None or known[0] != values:
        tensor = torch.tensor(values, dtype=dtype)
        # Pinned, so that the copy does not wait for the device.
        tensor = tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
        known = layout.cache[key] = (values, tensor)
    result: Tensor = known[1]
    return result


def layers_of_segments(layout: Layout, device: torch.device) -> Tensor:
    """Each segment's layer, 1-D int64."""
    return constant(layout, "segments", [segment.layer for segment in layout.segments], torch.int64, device)


def number(value: float | Tensor, device: torch.device) -> Tensor:
    """A number as a 0-d float32 tensor, filled on the device: a copy from the host would wait for it."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)
