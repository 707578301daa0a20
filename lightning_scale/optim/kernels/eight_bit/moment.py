"""Moments as they stand in memory, and how a piece of one is read and written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.codec import BLOCK, Code, block_count, dequantize, quantize


def store(target: Tensor, values: Tensor, finite: Tensor | None) -> None:
    """Write into ``target``, rounded to its dtype; nothing changes, bit for bit, where ``finite`` is a False."""
    values = values.to(target.dtype).view(target.shape)
    target.copy_(values if finite is None else torch.where(finite, values, target))


@dataclass(frozen=True)
class PlainMoment:
    """A segment's moment, or a piece of it, in compute dtype: that of a small layer."""

    values: Tensor
    """1-D, a view of the state."""

    def part(self, offset: int, length: int) -> PlainMoment:
        """A run of elements."""
        return self if length == len(self.values) else PlainMoment(self.values[offset : offset + length])

    def read(self) -> Tensor:
        """The numbers, 1-D: read only."""
        return self.values


@dataclass(frozen=True)
class CodedMoment:
    """A segment's moment, or a piece of it, in 8 bits."""

    codes: Tensor
    """uint8, 1-D, a view of the state."""
    absmax: Tensor
    """float32, of each block, 1-D, a view of the state."""
    code: Code
    start: int
    """The first element, counted from its layer's element 0."""

    def part(self, offset: int, length: int) -> CodedMoment:
        """A run of elements that starts and ends with a block or with the segment."""
        if length == len(self.codes):
            return self
        start = self.start + offset
        first = start // BLOCK - self.start // BLOCK
        blocks = block_count(start, length)
        return CodedMoment(self.codes[offset : offset + length], self.absmax[first : first + blocks], self.code, start)

    def read(self) -> Tensor:
        """The numbers, 1-D float32, in new memory."""
        return dequantize(self.codes, self.absmax, self.code, self.start)

    def write(self, values: Tensor, finite: Tensor | None) -> None:
        """Store new ones."""
        codes, absmax = quantize(values, self.code, self.start)
        store(self.codes, codes, finite)
        store(self.absmax, absmax, finite)


Moment = PlainMoment | CodedMoment
