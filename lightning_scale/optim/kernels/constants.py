"""Numbers of the host on the device, brought there only when they have changed."""

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
