"""The blocks' scales of a share of rows, written row by row: a form that does not depend on how many ranks hold them.

A share of whole rows may begin and end inside a block, whose parts then have a scale each. So that another share can be
made of the same numbers, every row has a scale for each block that it touches, in order: [rows, `columns`], zeros where a
row touches fewer. A row of a multiple of 256 elements touches its own blocks alone: there are as many scales as blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from lightning_scale.optim.codec import BLOCK, Code, block_count, with_one_scale


@dataclass(frozen=True)
class Rows:
    """A run of whole rows of a parameter.

    Args:
        first: The first one's number.
        count: How many.
        length: Elements of a row, 1 or more.
    """

    first: int
    count: int
    length: int

    @property
    def start(self) -> int:
        """The first element, counted from the parameter's element 0."""
        return self.first * self.length

    @property
    def blocks(self) -> int:
        """How many blocks, or parts of blocks, they have."""
        return block_count(self.start, self.count * self.length)


def columns(length: int) -> int:
    """How many blocks a row of ``length`` elements touches at most, wherever rows begin in the grid."""
    return -(-(BLOCK - gcd(length, BLOCK) + length) // BLOCK)


def by_row(absmax: Tensor, rows: Rows) -> Tensor:
    """[blocks] scales of a share as [rows, columns]."""
    if not rows.count:
        return absmax.new_zeros(0, columns(rows.length))
    block, touched = _touched(rows, absmax.device)
    return torch.where(touched, absmax[block.clamp(max=rows.blocks - 1)], 0.0)


def by_block(scales: Tensor, codes: Tensor, rows: Rows, code: Code) -> tuple[Tensor, Tensor]:
    """The codes and [blocks] scales of a share, whatever the shares were that its rows come from.

    Where the rows of a block have one scale, which they do unless another share ended there, codes and scale are as they
    were. Else the block's numbers are read, and rounded anew with one scale.

    Args:
        scales: [rows, columns] float32.
        codes: uint8, 1-D: of all the rows' elements.
        rows: Which.
        code: Of the moment.

    Returns:
        The codes (the same tensor where none changed) and the scales.
    """
    if not rows.count:
        return codes, scales.new_zeros(0)
    block, touched = _touched(rows, scales.device)
    block, parts = block[touched], scales[touched]
    absmax = scales.new_zeros(rows.blocks).scatter_reduce_(0, block, parts, "amax")
    least = torch.full_like(absmax, torch.inf).scatter_reduce_(0, block, parts, "amin")
    joined = (least < absmax).nonzero().flatten().tolist()
    if joined:
        codes = codes.clone()
    for number in joined:
        begin = max(0, number * BLOCK - rows.start % BLOCK)
        end = min(len(codes), (number + 1) * BLOCK - rows.start % BLOCK)
        element = torch.arange(rows.start + begin, rows.start + end, device=scales.device)
        row = element // rows.length
        own = scales[row - rows.first, element // BLOCK - row * rows.length // BLOCK]
        codes[begin:end], absmax[number : number + 1] = with_one_scale(codes[begin:end], own, code, rows.start + begin)
    return codes, absmax


def _touched(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """[rows, columns]: which of the share's blocks stands where, and whether its row touches it."""
    start = torch.arange(rows.first, rows.first + rows.count, device=device) * rows.length
    block = (start // BLOCK)[:, None] + torch.arange(columns(rows.length), device=device)
    touched = block <= ((start + rows.length - 1) // BLOCK)[:, None]
    return block - rows.start // BLOCK, touched
