"""A tile of a moment, read from its codes and scales and rounded to them: `optim.codec.blockwise` in kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.division import quotient
from lightning_scale.optim.kernels.fused.nearest_code import nearest_code
from lightning_scale.optim.kernels.fused.tiles import read, write

_INFINITE = tl.constexpr(0x7F800000)  # bits of float32 numbers: they ascend as magnitudes do, with NaN above all
_LARGEST = tl.constexpr(0x7F7FFFFF)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def read_moment(at, scales, i, rows, inside, inside_rows, values, PLAIN: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 [2, rows, 128]: the moment, PLAIN or in 8 bits.

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
        return tl.load(values + stored.to(tl.int32)) * scale[None, :, None]


@triton.jit
def write_moment(  # type: ignore[no-untyped-def]
    at, scales, i, rows, inside, inside_rows, x, table, SIGN: tl.constexpr, PLAIN: tl.constexpr, MASKED: tl.constexpr
):
    """Store a moment; numbers outside must be 0. ``table`` is the code's `nearest_code.search_table`."""
    if PLAIN:
        write(at, i, x, inside, MASKED)
    else:
        size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(tl.max(size, 0), 1)
        largest = tl.where(largest > _INFINITE, _NAN, tl.minimum(largest, _LARGEST))
        absmax = largest.to(tl.float32, bitcast=True)
        write(scales, rows, absmax, inside_rows, MASKED)
        # The block brought to where `quotient` is exact: nothing that decides a code is lost, for what becomes smaller is
        # far below the smallest value.
        shift = tl.where(absmax < 2.0**-40, 2.0**64, tl.where(absmax > 2.0**100, 2.0**-40, 1.0))
        divisor = tl.where(largest == 0, 1.0, absmax * shift)
        reciprocal = tl.div_rn(1.0, divisor)
        shift, divisor, reciprocal = shift[None, :, None], divisor[None, :, None], reciprocal[None, :, None]
        # The least of 1 and NaN, which an infinite number gives, is 1.
        unit = tl.minimum(quotient(size.to(tl.float32, bitcast=True) * shift, divisor, reciprocal), 1.0)
        if SIGN:
            sign = x.to(tl.uint32, bitcast=True) & 0x80000000
            unit = (unit.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)
        write(at, i, nearest_code(unit, table, SIGN).to(tl.uint8), inside, MASKED)
