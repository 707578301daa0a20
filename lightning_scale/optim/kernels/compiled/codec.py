"""The 8-bit code in a form that Inductor vectorizes, with the very codes and numbers of `lightning_scale.optim.quantization`.

**Codes to values.** Count the values of one sign from the first decade's number of parts on: then decade i is k = n..2n-1,
and its values are A / D with whole numbers A = 18k - 16n + 9 and D = 2n·10^(7-i), exact in float32, so that one division
gives the value as the table has it, rounded once. With the first six decades over one denominator the right one of their
lines is the largest, for the lines get steeper.

**Values to codes.** The upper 16 bits of a float32 are a cell: 128 to each power of two, narrow enough that none holds two
thresholds. The cell's entry is chosen so that adding the number's lower 16 bits carries into the code exactly above
the threshold, so one lookup and one addition find what a search would.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.quantization.code import DECADES, Code

_LARGEST = torch.finfo(torch.float32).max
_LOW = 16
_MASK = (1 << _LOW) - 1
# Below 2^-22 lies no threshold but the unsigned code's 0; nothing is above 1.
_FIRST_CELL = (127 - 22) << (23 - _LOW)
_LAST_CELL = 127 << (23 - _LOW)


def values(codes: Tensor, code: Code) -> Tensor:
    """float32: what codes stand for, before any scale."""
    c = codes.float()
    start = code.parts(0)  # where the first decade starts, as k counts
    k = (c - code.zero).abs() if code.signed else c + 1
    last = DECADES - 1
    numerator = k * 18.0 + (9.0 - 16 * start)
    for i in range(1, last):
        numerator = torch.maximum(numerator, k * (18.0 * 5**i) + (9.0 - 16 * start * 2**i) * 5**i)
    in_last = k >= start * 2**last
    numerator = torch.where(in_last, k * 18.0 + (9.0 - 16 * start * 2**last), numerator)
    denominator = torch.where(in_last, 256.0 * start * 5, 256.0 * start * 5**DECADES)
    found = (numerator / denominator).clamp(0, 1)  # the code of 0, and that of 1
    return torch.where(c < code.zero, -found, found) if code.signed else found


@cache
def cells(code: Code) -> Tensor:
    """The entry of each cell, int32."""
    thresholds = code.thresholds()[code.zero :].view(torch.int32).tolist()
    entries = []
    for cell in range(_FIRST_CELL, _LAST_CELL + 1):
        begin = cell << _LOW
        inside = [t - begin for t in thresholds if begin <= t <= begin + _MASK]
        assert len(inside) <= 1, "a cell holds two thresholds"
        below = sum(t < begin for t in thresholds)
        entries.append((below << _LOW) + (_MASK - inside[0] if inside else 0))
    return torch.tensor(entries, dtype=torch.int32)


def absmax_of(blocks: Tensor) -> Tensor:
    """[n, 1]: the scales of rows that are blocks."""
    return blocks.abs().amax(1, keepdim=True).clamp(max=_LARGEST)


def nearest(blocks: Tensor, absmax: Tensor, entries: Tensor, code: Code) -> Tensor:
    """uint8 codes of rows that are blocks; ``entries`` are `cells`."""
    x = blocks / torch.where(absmax == 0, 1.0, absmax)
    bits = x.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    cell = ((magnitude >> _LOW) - _FIRST_CELL).clamp(0, _LAST_CELL - _FIRST_CELL)
    entry: Tensor = torch.ops.aten._unsafe_index(entries, [cell])  # without a test of bounds
    found = (entry + (magnitude & _MASK)) >> _LOW
    if code.signed:
        sign = bits >> 31  # 0 or -1
        return (((found ^ sign) - sign) + code.zero).clamp(min=0).to(torch.uint8)
    return torch.where(x > 0, found, 0).to(torch.uint8)
