"""Norms from sums over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import Plan

# Below it, squares of float32 elements may be lost to underflow; at it, what a million million of them lose is nothing.
_SMALLEST_SURE = 1e-24


def layer_squares(plan: Plan, layers: int, sums: Sequence[Sequence[Tensor]]) -> Tensor:
    """Squared norms of all layers, [kinds, layers] float64.

    Args:
        plan: The rows.
        layers: How many layers there are, those without rows here included.
        sums: Of each call, in the plan's order, the sums over its rows of each kind.
    """
    total = torch.zeros(2, layers, dtype=torch.float64, device="cpu")
    if not sums:
        return total
    rows = torch.stack([torch.cat(list(kind)) for kind in zip(*sums, strict=True)]).double()
    # numpy's, for torch brings a second thread to so few numbers and waits for it.
    by_run = torch.from_numpy(np.add.reduceat(rows.numpy(), plan.first_rows, axis=1))
    for own, kind in zip(total, by_run, strict=True):
        own.index_add_(0, plan.run_layers, kind)
    return total


def make_sure(squares: Tensor, plan: Plan, exactly: Callable[[int], list[Tensor]]) -> None:
    """Sum again in float64 where float32 sums may not be right (overflow, underflow, NaN), in place.

    Args:
        squares: Of each layer, 1-D float64.
        plan: The rows that were summed.
        exactly: A layer's elements, in tensors of any floating-point dtype.
    """
    for layer, square in enumerate(squares.tolist()):
        if layer in plan.layers and not _SMALLEST_SURE <= square < float("inf"):
            parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in exactly(layer)]
            squares[layer] = torch.stack(parts).square().sum()
