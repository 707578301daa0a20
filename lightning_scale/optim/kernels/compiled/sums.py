"""Norms from sums over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import Plan

Squares = NDArray[np.float64]

# Below it, squares of float32 elements may be lost to underflow; at it, what a million million of them lose is nothing.
_SMALLEST_SURE = 1e-24


def layer_squares(plan: Plan, layers: int, sums: Sequence[Sequence[Tensor]]) -> Squares:
    """Squared norms of all layers, [kinds, layers].

    Args:
        plan: The rows.
        layers: How many layers there are, those without rows here included.
        sums: Of each call, in the plan's order, the sums over its rows of each kind; of padding after the last ones too.
    """
    # By numpy, for torch brings a second thread to so few numbers and waits for it.
    total = np.zeros((2, layers))
    whole = len(plan.whole)
    for run, kinds in zip(plan.whole, sums[:whole], strict=True):
        for own, kind in zip(total, kinds, strict=True):
            own[run.layer] += np.add.reduce(kind.numpy(), dtype=np.float64)
    for batch, kinds in zip(plan.batches, sums[whole:], strict=True):
        starts = [run.row - batch[0].row for run in batch]
        count = sum(run.rows for run in batch)
        for own, kind in zip(total, kinds, strict=True):
            by_run = np.add.reduceat(kind.numpy()[:count], starts, dtype=np.float64)
            np.add.at(own, [run.layer for run in batch], by_run)
    return total


def make_sure(squares: Squares, plan: Plan, exactly: Callable[[int], list[Tensor]]) -> None:
    """Sum again in float64 where float32 sums may not be right (overflow, underflow, NaN), in place.

    Args:
        squares: Of each layer, 1-D.
        plan: The rows that were summed.
        exactly: A layer's elements, in tensors of any floating-point dtype.
    """
    for layer in plan.layers:
        if not _is_sure(squares[layer]):
            squares[layer] = _in_float64(exactly(layer))


def row_square(sums: Tensor, rows: Tensor) -> float:
    """The squared norm of one call's rows, from the sums over each; where these may not be right, from the rows."""
    total = float(np.add.reduce(sums.numpy(), dtype=np.float64))
    return total if _is_sure(total) else _in_float64([rows])


def _is_sure(square: float) -> bool:
    return _SMALLEST_SURE <= square < math.inf


def _in_float64(parts: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in parts]
    return float(torch.stack(norms).square().sum())
