"""Norms from sums over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import Plan

# Below it, squares of float32 elements may be lost to underflow; at it, what a million million of them lose is nothing.
_SMALLEST_SURE = 1e-24


def layer_squares(plan: Plan, layers: int, sums: Sequence[Tensor]) -> Tensor:
    """Squared norms of all layers, 1-D float64, from the sums over the plan's rows, in order."""
    total = torch.zeros(layers, dtype=torch.float64, device="cpu")
    if not sums:
        return total
    rows = torch.cat(list(sums)) if len(sums) > 1 else sums[0]
    if len(plan.layers) == 1:
        total[plan.layers[0]] = rows.sum(dtype=torch.float64)
        return total
    return total.index_add_(0, plan.row_layers, rows.double())


def sure(squares: Tensor, plan: Plan, exactly: Callable[[int], list[Tensor]]) -> Tensor:
    """``squares`` where float32 sums are right; elsewhere (overflow, underflow, NaN) summed again in float64.

    Args:
        squares: Of each layer, 1-D float64.
        plan: The rows that were summed.
        exactly: A layer's elements, in tensors of any floating-point dtype.
    """
    for layer in plan.layers:
        if not _SMALLEST_SURE <= float(squares[layer]) < float("inf"):
            parts = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in exactly(layer)]
            squares[layer] = torch.stack(parts).square().sum() if parts else 0.0
    return squares
