"""The grid of blocks over a parameter, and the part of it that a segment sees.

The grid starts at the parameter's element 0, in row-major order, wherever the parameter lives. A segment (a run of its
elements) that starts or ends inside a block has a part of that block, with a scale of its own.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256


def block_count(start: int, length: int) -> int:
    """How many blocks a segment of ``length`` elements has, from element ``start`` of its parameter on."""
    return -(-(start % BLOCK + length) // BLOCK) if length else 0


def blocks(start: int, length: int) -> list[tuple[int, int]]:
    """The segment's blocks in order: (first element, counted from the segment's own, and number of elements)."""
    edges = [0, *range(BLOCK - start % BLOCK, length, BLOCK), length]
    return [(a, b - a) for a, b in pairwise(edges)] if length else []


def to_grid(flat: Tensor, start: int) -> Tensor:
    """The segment's elements as rows of whole blocks, zeros where it has none: a view where no block is cut."""
    before = start % BLOCK if flat.numel() else 0
    after = -(before + flat.numel()) % BLOCK
    return (pad(flat, (before, after)) if before or after else flat).view(-1, BLOCK)


def from_grid(grid: Tensor, start: int, length: int) -> Tensor:
    """The segment's elements out of `to_grid`'s rows, 1-D, as a view."""
    before = start % BLOCK
    return grid.view(-1)[before : before + length]
