"""The dynamic code (see `optim.codec.tables`) inside kernels: the value of a code, and the nearest code of a number.

The nearest code is found in two ways. The table has one entry for each run of float32 numbers that share their upper bits,
so short that at most one threshold lies in it: it is exact everywhere, but a warp's 32 look-ups touch many cache lines. So
it is asked only where it must be: within the two highest decades a place is the least of three lines, and where it is not
within 1/256 of a border its whole part is the code.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.codec import SIGNED, UNSIGNED, Code, nearest_by_search
from lightning_scale.optim.kernels.fused.division import fma_to_unit

# A run's 7 mantissa bits tell two thresholds apart: the unsigned code's 128 parts of [0.1, 1] are wider than its 1/256.
SHIFT = tl.constexpr(16)
# Without the lines the table is asked for every number: a quarter fewer instructions, and many times the cache lines.
LINES = tl.constexpr(True)


@triton.jit
def _place(x, PARTS: tl.constexpr, FIRST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where x lies among the values of one sign: the whole part is the number of thresholds below it, from 0.01 up to 0.98.

    PARTS of [0.1, 1], of which the first has number FIRST; half as many of [0.01, 0.1]. The threshold between the two
    decades is the middle of two values that are not equally far from 0.1: it lies on a line of its own. What is beyond the
    ends comes to lie on a border.
    """
    low: tl.constexpr = FIRST - PARTS // 2 + 1.0
    size: tl.constexpr = PARTS + PARTS // 2 - 2.0  # between the ends: lines are scaled so that these are 0 and 1
    upper: tl.constexpr = FIRST - PARTS / 9
    place = fma_to_unit(x, PARTS / 0.9 / size, (upper - low) / size)
    place = tl.minimum(place, fma_to_unit(x, 5 * PARTS / 0.9 / size, (FIRST - 5 * PARTS / 9 - low) / size))
    corner: tl.constexpr = FIRST + 1.75 * (upper - FIRST - 0.2)
    place = tl.minimum(place, tl.fma(x, 1.75 * PARTS / 0.9 / size, (corner - low) / size))
    return place, size, low


@triton.jit
def nearest_code(x, table, SIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The code of each float32 in [-1, 1], or in [0, 1] where there is no SIGN, as the lowest byte of a uint32.

    ``table`` is the `search_table`.
    """
    bits = x.to(tl.uint32, bitcast=True)
    turned = bits
    if SIGN:
        turned = bits ^ (bits.to(tl.int32, bitcast=True) >> 31).to(tl.uint32, bitcast=True)
    if not LINES:
        return (tl.load(table + (bits >> SHIFT)).to(tl.uint32, bitcast=True) + turned) >> SHIFT
    else:
        # The code becomes the second byte of a float's bits, its fraction the first.
        if SIGN:
            place, size, low = _place(tl.abs(x), 64, 63.5)
            place = tl.fma(place, size, low).to(tl.uint32, bitcast=True) | (bits & 0x80000000)
            place = place.to(tl.float32, bitcast=True) + (32768.0 + 127.5)
        else:
            place, size, low = _place(x, 128, 127.0)
            place = tl.fma(place, size, 32768.0 + low)
        place = place.to(tl.uint32, bitcast=True)
        unsure = (place & 0xFF) == 0
        entry = tl.load(table + (bits >> SHIFT), mask=unsure).to(tl.uint32, bitcast=True)
        return tl.where(unsure, entry + turned, place << (SHIFT - 8)) >> SHIFT


@cache
def search_table(signed: bool, device: torch.device) -> Tensor:
    """1-D uint32, kept as int32: for the upper bits of each float32 in [-1, 1] a number to add to all of its bits.

    The sum's upper bits are the code: its lower bits carry into them exactly where x is beyond the run's threshold. Of a
    negative x all bits are turned over before the sum, so that they ascend with it; the unsigned code has 0 for it.
    """
    with torch.device("cpu"):
        code, shift = SIGNED if signed else UNSIGNED, 16
        positive = torch.arange((0x3F800000 >> shift) + 1)  # the last of them the upper bits of 1
        negative = positive + (1 << 31 - shift)
        unused = torch.zeros(int(negative[0]) - len(positive), dtype=torch.int64)
        below = _entries(code, shift, negative) if signed else (-negative * (1 << shift)) & 0xFFFFFFFF
        table: Tensor = _as_int32(torch.cat([_entries(code, shift, positive), unused, below]))
    return table.to(device)


def _entries(code: Code, shift: int, upper: Tensor) -> Tensor:
    """An entry for each of these upper bits, int64."""
    size = 1 << shift
    lowest, highest = upper * size, upper * size + size - 1
    negative = lowest >= 1 << 31
    ends = torch.stack([torch.where(negative, highest, lowest), torch.where(negative, lowest, highest)])
    first, last = nearest_by_search(_as_int32(ends).view(torch.float32), code).long()
    assert bool((last - first <= 1).all() and (last >= first).all()), "two thresholds share their upper bits"
    # The threshold's lower bits, counted from the run's smallest number; where there is none, nothing is beyond the last.
    thresholds = code.thresholds()[first.clamp(max=254)].view(torch.int32).long() & 0xFFFFFFFF
    lower = torch.where(negative, highest - thresholds, thresholds - lowest)
    lower = torch.where(last > first, lower, size - 1)
    base = torch.where(
        negative, (1 << 32) - 1 - highest, lowest
    )  # what is added to, turned over and without lower bits
    entries: Tensor = (first * size + (size - 1 - lower) - base) & 0xFFFFFFFF
    return entries


def _as_int32(bits: Tensor) -> Tensor:
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)
