"""The 8-bit code inside kernels: moments are read from codes and scales, and rounded to them."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.choice import interpreted
from lightning_scale.optim.backends.triton.elements import read_tile, write_tile
from lightning_scale.optim.quantization import SIGNED, UNSIGNED, Code, nearest_by_search

# Where there are no PTX instructions; decided when the kernels are, as Triton decides it.
_NO_PTX = tl.constexpr(interpreted() or torch.version.hip is not None)


@triton.jit
def quotient(x, divisor, reciprocal):  # type: ignore[no-untyped-def]
    """x / divisor, from the reciprocal rounded to the nearest float32: its product with x, corrected by what that leaves
    (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000 processor", theorem 8.3).

    The same bits as a division for divisors within 2^-60 and 2^100, finite x, and quotients that are 0 or from 2^-60 up:
    tried for the numerators of every divisor whose quotients lie nearest to the middle of two numbers. Smaller quotients
    may be off in the last bit.
    """
    near = x * reciprocal
    return tl.fma(tl.fma(near, -divisor, x), reciprocal, near)


@triton.jit
def ordinary_quotient(x, divisor):  # type: ignore[no-untyped-def]
    """x / divisor as `quotient`, with a divisor for each x: the instructions that a division takes for ordinary numbers."""
    if _NO_PTX:
        return tl.div_rn(x, divisor)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 minus, inverse, rest;
            neg.f32 minus, $2;
            rcp.approx.ftz.f32 inverse, $2;
            fma.rn.f32 rest, minus, inverse, 0f3F800000;
            fma.rn.f32 inverse, rest, inverse, inverse;
            mul.rn.f32 $0, $1, inverse;
            fma.rn.f32 rest, minus, $0, $1;
            fma.rn.f32 $0, rest, inverse, $0;
            }""",
            "=&f,f,f",
            [x, divisor],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def ordinary_root(x):  # type: ignore[no-untyped-def]
    """√x for finite x from 2^-100 up: the instructions that a square root takes for ordinary numbers."""
    if _NO_PTX:
        return tl.sqrt_rn(x)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 half, minus, rest;
            rsqrt.approx.ftz.f32 half, $1;
            mul.rn.f32 $0, $1, half;
            mul.rn.f32 half, half, 0f3F000000;
            neg.f32 minus, $0;
            fma.rn.f32 rest, minus, $0, $1;
            fma.rn.f32 $0, rest, half, $0;
            }""",
            "=&f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def fma_to_unit(x, y, z):  # type: ignore[no-untyped-def]
    """xy + z, brought into [0, 1]: one instruction."""
    if _NO_PTX:
        return tl.clamp(tl.fma(x, y, z), 0.0, 1.0)
    else:
        return tl.inline_asm_elementwise(
            "fma.rn.sat.f32 $0, $1, $2, $3;", "=f,f,f,f", [x, y, z], dtype=tl.float32, is_pure=True, pack=1
        )


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


# Bits of float32 numbers, which ascend as magnitudes do, with NaN above all.
_INFINITE = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(0x7F7FFFFF)
# Between these absmax, `quotient` gives the codes of a division: signed ones, and unsigned ones, whose least positive number
# must not become 0.
_SMALL = tl.constexpr(0x21800000)  # 2^-60
_LARGE = tl.constexpr(0x71800000)  # 2^100
_ONE = tl.constexpr(0x3F800000)


@triton.jit
def read_moment(at, scales, i, rows, inside, inside_rows, values, PLAIN: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 [rows, 256]: the moment, PLAIN or in 8 bits.

    Args:
        at: Where its numbers or codes begin.
        scales: Where the blocks' scales begin.
        i: The elements' places.
        rows: [rows]: the blocks' places.
        inside: Which of the elements there are.
        inside_rows: Which of the blocks there are.
        values: The code's 256 values.
    """
    stored = read_tile(at, i, inside, MASKED)
    if PLAIN:
        return stored
    else:
        scale = read_tile(scales, rows, inside_rows, MASKED)
        return tl.load(values + stored.to(tl.int32)) * scale[:, None]


@triton.jit
def largest_of_rows(x):  # type: ignore[no-untyped-def]
    """[rows] int32: the bits of the largest magnitude of each row; above those of infinity where one is NaN."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def _any_quotient(x, bits, largest, divisor, SIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """x / divisor. An infinite number counts as the largest finite one; a block with a NaN becomes what has the code 0."""
    x = tl.where(tl.abs(x) <= largest[:, None], x, tl.where(x < 0, -largest[:, None], largest[:, None]))
    x = tl.where((bits > _INFINITE)[:, None], -largest[:, None] if SIGN else 0.0, x)
    return tl.div_rn(x, divisor[:, None])


@triton.jit
def write_moment(  # type: ignore[no-untyped-def]
    at, scales, i, rows, inside, inside_rows, x, bits, table,
    SIGN: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Store a moment; numbers outside must be 0.

    Args:
        x: The moment.
        bits: Its `largest_of_rows`.
        table: The code's `nearest_code.search_table`.
    """
    if PLAIN:
        write_tile(at, i, x, inside, MASKED)
    else:
        largest = tl.minimum(bits, _LARGEST).to(tl.float32, bitcast=True)
        write_tile(scales, rows, tl.where(bits > _INFINITE, float("nan"), largest), inside_rows, MASKED)
        divisor = tl.where(bits == 0, 1.0, largest)
        if (tl.min(bits, 0) >= _SMALL) & (tl.max(bits, 0) < (_LARGE if SIGN else _ONE)):
            unit = quotient(x, divisor[:, None], tl.div_rn(1.0, divisor)[:, None])
        else:
            unit = _any_quotient(x, bits, largest, divisor, SIGN)
        write_tile(at, i, nearest_code(unit, table, SIGN).to(tl.uint8), inside, MASKED)
