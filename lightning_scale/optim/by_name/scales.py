"""The scales of a layer's 8-bit codes as runs of elements that share one: a block, or a part of one that an edge has cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.codec import BLOCK, block_count
from lightning_scale.optim.moments import absmax_key

CUT_STARTS = "{}_cut_starts"
CUT_ABSMAX = "{}_cut_absmax"


@dataclass(frozen=True)
class Scales:
    """Runs in order; one begins with every block.

    Args:
        starts: int64, 1-D: each run's first element, counted in the layer.
        absmax: float32, 1-D: each run's scale.
    """

    starts: Tensor
    absmax: Tensor

    @property
    def cut(self) -> Tensor:
        """Which runs begin inside a block."""
        return self.starts % BLOCK != 0

    def entries(self, key: str) -> dict[str, Tensor]:
        """As a layer's whole state has them; see the package."""
        found = {absmax_key(key): self.absmax[~self.cut]}
        if self.cut.any():
            found[CUT_STARTS.format(key)] = self.starts[self.cut]
            found[CUT_ABSMAX.format(key)] = self.absmax[self.cut]
        return found

    def at(self, elements: Tensor) -> Tensor:
        """The scale of each element (int64, 1-D)."""
        return self.absmax[torch.searchsorted(self.starts, elements, right=True) - 1]


def from_pieces(places: Sequence[tuple[int, int]], absmax: Sequence[Tensor]) -> Scales:
    """The runs of pieces that follow one another.

    Args:
        places: (first element, length) of each.
        absmax: Of each, the scale of every block that it has elements of.
    """
    return _merged(torch.cat([_starts(*place) for place in places]), torch.cat([a.cpu() for a in absmax]))


def from_state(absmax: Tensor, cut_starts: Tensor | None, cut_absmax: Tensor | None) -> Scales:
    """The runs of a layer's whole state; see the package."""
    starts = torch.arange(len(absmax), dtype=torch.int64) * BLOCK
    if cut_starts is None or cut_absmax is None:
        return Scales(starts, absmax.cpu())
    starts = torch.cat([starts, cut_starts.cpu()])
    order = starts.argsort()
    return Scales(starts[order], torch.cat([absmax.cpu(), cut_absmax.cpu()])[order])


def from_rows(scales: Tensor, length: int) -> Scales:
    """The runs of a layer whose scales are written row by row (see `lightning_scale.optim.row_scales`).

    Args:
        scales: [rows, columns] float32.
        length: Elements of a row.
    """
    rows, columns = scales.shape
    row = torch.arange(rows, dtype=torch.int64)[:, None] * length
    block = row // BLOCK + torch.arange(columns, dtype=torch.int64)
    touched = block * BLOCK < row + length
    return _merged(torch.maximum(row, block * BLOCK)[touched], scales.cpu()[touched])


def _starts(start: int, length: int) -> Tensor:
    """The first element of each block, or part of one, that these elements lie in."""
    first = start // BLOCK
    starts = torch.arange(first, first + block_count(start, length), dtype=torch.int64) * BLOCK
    return starts.clamp_(min=start)


def _merged(starts: Tensor, absmax: Tensor) -> Scales:
    """Without the cuts whose two sides have one scale."""
    same = torch.zeros_like(starts, dtype=torch.bool)
    same[1:] = (starts[1:] % BLOCK != 0) & (absmax[1:] == absmax[:-1])
    return Scales(starts[~same], absmax[~same])
