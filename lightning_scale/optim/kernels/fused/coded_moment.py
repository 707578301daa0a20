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
        write(at, i, x, inside, MASKED)
    else:
        largest = tl.minimum(bits, _LARGEST).to(tl.float32, bitcast=True)
        write(scales, rows, tl.where(bits > _INFINITE, float("nan"), largest), inside_rows, MASKED)
        divisor = tl.where(bits == 0, 1.0, largest)
        if (tl.min(bits, 0) >= _SMALL) & (tl.max(bits, 0) < (_LARGE if SIGN else _ONE)):
            unit = quotient(x, divisor[:, None], tl.div_rn(1.0, divisor)[:, None])
        else:
            unit = _any_quotient(x, bits, largest, divisor, SIGN)
        write(at, i, nearest_code(unit, table, SIGN).to(tl.uint8), inside, MASKED)
