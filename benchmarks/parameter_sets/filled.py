"""Parameters of the shapes of a set, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def filled(shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> list[nn.Parameter]:
    """Random parameters with random gradients: never zeros, which are quicker than numbers."""
    random = torch.Generator(device).manual_seed(0)

    def numbers(shape: tuple[int, ...], scale: float) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=random, device=device)).to(dtype)

    parameters = [nn.Parameter(numbers(shape, 0.02)) for shape in shapes]
    for p in parameters:
        p.grad = numbers(tuple(p.shape), 1e-3)
    return parameters
