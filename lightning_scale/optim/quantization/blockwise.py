"""Block-wise quantization (Dettmers et al. 2021, arXiv 2110.02861, section 2.1), in exactly rounded float32 operations.

Of each block, with every operation rounded to the nearest float32::

    absmax = min(max |x|, largest finite float32)
    code   = the nearest to x / absmax          (see `Code.thresholds`: the middle of two values; positive is never 0)
    x      ≈ value[code] · absmax

A block of zeros has absmax 0 and the code of 0. Numbers below float32's normal range are numbers as all others: nothing
is flushed. An infinite number counts as the largest finite one. A block with a NaN has absmax NaN, so that all of it is
NaN when it is read, whatever its codes.

The error is at most half the distance of the two values around x / absmax (all of it between 0 and the smallest positive
value of the unsigned code, 3.25e-7), times absmax: never above 0.00704 · absmax (signed) or 0.00352 · absmax (unsigned).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_scale.optim.quantization.code import Code, nearest_by_arithmetic

BLOCK = 256


def block_count(start: int, length: int) -> int:
    """Return how many blocks a run of ``length`` elements has, from element ``start`` of its parameter on."""
    return -(-(start % BLOCK + length) // BLOCK) if length else 0


def blocks(start: int, length: int) -> list[tuple[int, int]]:
    """Return the blocks of a run in order: the first element of each, counted from the run's own, and how many it has."""
    edges = [0, *range(BLOCK - start % BLOCK, length, BLOCK), length]
    return [(a, b - a) for a, b in pairwise(edges)] if length else []


def to_grid(flat: Tensor, start: int) -> Tensor:
    """Return the run's elements as rows of whole blocks, with zeros where it has none. It is a view where no block is cut."""
    before = start % BLOCK if flat.numel() else 0
    after = -(before + flat.numel()) % BLOCK
    return (pad(flat, (before, after)) if before or after else flat).view(-1, BLOCK)


def from_grid(grid: Tensor, start: int, length: int) -> Tensor:
    """Return the run's elements out of the rows that `to_grid` made, 1-D, as a view."""
    before = start % BLOCK
    return grid.view(-1)[before : before + length]


_LARGEST = torch.finfo(torch.float32).max


def quantize(
    values: Tensor, code: Code, start: int = 0, nearest: Callable[[Tensor, Code], Tensor] = nearest_by_arithmetic
) -> tuple[Tensor, Tensor]:
    """Round a run of numbers to codes and scales.

    Args:
        values: The run's elements, float32, 1-D.
        code: The code, which says what values the 256 codes stand for.
        start: The number of the run's first element, counted from its parameter's element 0.
        nearest: The function that finds the nearest code; both that there are give the same.

    Returns:
        The codes, uint8, 1-D, and the absmax of each block, float32, 1-D.
    """
    grid = to_grid(values, start)
    absmax = grid.abs().amax(1).clamp_(max=_LARGEST)
    divisor = torch.where(absmax == 0, 1.0, absmax)
    codes = nearest(grid / divisor[:, None], code)
    return from_grid(codes, start, values.numel()), absmax


def dequantize(codes: Tensor, absmax: Tensor, code: Code, start: int = 0) -> Tensor:
    """Return the float32 numbers that `quantize`'s result stands for, in a new 1-D tensor."""
    grid = to_grid(codes, start)
    values = code.values(codes.device).index_select(0, grid.reshape(-1).int()).view(grid.shape)
    return from_grid(values.mul_(absmax[:, None]), start, codes.numel())


def with_one_scale(codes: Tensor, scales: Tensor, code: Code, start: int) -> tuple[Tensor, Tensor]:
    """Round a block whose codes stood beside several scales anew, beside the one that its largest number gives.

    Args:
        codes: The codes of the block's elements, or of those of them that a share holds: uint8, 1-D.
        scales: The scale of each element, float32.
        code: The code, which says what values the 256 codes stand for.
        start: The number of the first element, counted from its parameter's element 0.

    Returns:
        The codes and the scale, as `quantize` returns them.
    """
    return quantize(code.values(codes.device).index_select(0, codes.int()) * scales, code, start)
