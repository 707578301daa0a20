"""A tile of a moment, read from its codes and scales and rounded to them: `optim.codec.blockwise` in kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.division import quotient
from lightning_scale.optim.kernels.fused.nearest_code import nearest_code
from lightning_scale.optim.kernels.fused.tiles import read, write

# Bits of float32 numbers, which ascend as magnitudes do, with NaN above all.
_INFINITE = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(0x7F7FFFFF)
_SMALL = tl.constexpr(0x21800000)  # 2^-60
_LARGE = tl.constexpr(0x71800000)  # 2^100


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
    stored = read(at, i, inside, MASKED)
    if PLAIN:
        return stored
    else:
        scale = read(scales, rows, inside_rows, MASKED)
        return tl.load(values + stored.to(tl.int32)) * scale[:, None]


@triton.jit
def largest_of_rows(x):  # type: ignore[no-untyped-def]
    """[rows] int32: the bits of the largest magnitude of each row; above those of infinity where one is NaN."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)


@triton.jit
def _brought_within(x, bits, largest, divisor, SIGN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Blocks and their divisors brought to where `quotient` is exact; what becomes 0 is far below the smallest value.

    An infinite number becomes the largest finite one; a block with a NaN becomes what has the code 0.
    """
    x = tl.where(tl.abs(x) <= largest[:, None], x, tl.where(x < 0, -largest[:, None], largest[:, None]))
    x = tl.where((bits > _INFINITE)[:, None], -largest[:, None] if SIGN else 0.0, x)
    shift = tl.where(bits < _SMALL, 2.0**90, tl.where(bits > _LARGE, 2.0**-40, 1.0))
    shift = tl.where(bits == 0, 1.0, shift)
    return x * shift[:, None], divisor * shift


@triton.jit
def write_moment(  # type: ignore[no-untyped-def]
    at,
    scales,
    i,
    rows,
    inside,
    inside_rows,
    x,
    bits,
    table,
    SIGN: tl.constexpr,
    PLAIN: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Store a moment; numbers outside must be 0.

    Args:
        x: The moment.
        bits: Its `largest_of_rows`.
        table: The code's `nearest_code.search_table`.
    """
    if PLAIN:
        write(at, i, x, inside, MASKED)
    else:
        largest = tl.minimum(bits, _LARGEST).to(tl.float32, bitcast=True)
        write(scales, rows, tl.where(bits > _INFINITE, float("nan"), largest), inside_rows, MASKED)
        divisor = tl.where(bits == 0, 1.0, largest)
        if (tl.min(bits, 0) < _SMALL) | (tl.max(bits, 0) > _LARGE):
            x, divisor = _brought_within(x, bits, largest, divisor, SIGN)
        unit = quotient(x, divisor[:, None], tl.div_rn(1.0, divisor)[:, None])
        unit = quotient(x, divisor[:, None], tl.div_rn(1.0, divisor)[:, None])
        write(at, i, nearest_code(unit, table, SIGN).to(tl.uint8), inside, MASKED)
