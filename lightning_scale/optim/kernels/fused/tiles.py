"""A program's elements at one time: rows of one block of the 8-bit grid each, and how they are read and written."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.choice import interpreted
from lightning_scale.optim.kernels.fused.elements import rounded

# Which way rounding to bfloat16 is written; decided when the kernels are, as Triton decides it.
_INTERPRETED = tl.constexpr(interpreted())
BLOCK = tl.constexpr(256)


@triton.jit
def tile(ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, 256] int32: the elements' places, counted from the tile's first."""
    return tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def place(base, first, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pointer to an element; where it is ALIGNED, that of four whole elements, which one load then takes."""
    at = base.to(tl.pointer_type(DTYPE)) + first
    if ALIGNED:
        BITS: tl.constexpr = tl.full((), 0, DTYPE).dtype.primitive_bitwidth  # as in elements.py
        at = tl.multiple_of(at, BITS // 2)
    return at


@triton.jit
def read(at, i, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elements; 0 outside, where some may be."""
    if MASKED:
        return tl.load(at + i, mask=inside, other=0)
    else:
        return tl.load(at + i)


@triton.jit
def write(at, i, values, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the elements that are inside."""
    if MASKED:
        tl.store(at + i, values, mask=inside)
    else:
        tl.store(at + i, values)


@triton.jit
def write_rounded(at, i, values, inside, DTYPE: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store float32 numbers, each rounded to the nearest value of a type."""
    if _INTERPRETED:
        write(at, i, rounded(values, DTYPE), inside, MASKED)
    else:
        write(at, i, values.to(DTYPE), inside, MASKED)
