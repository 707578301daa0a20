"""What every kernel does with elements: find them, read them as float32, and the types they have."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for a type."""
    return _TYPES[dtype]


@triton.jit
def address(table, tensor, start, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where an element of a tensor of a table of pointers lies, as a number."""
    # (Triton 3.2 asks no constexpr for its attributes.)
    BITS: tl.constexpr = tl.full((), 0, DTYPE).dtype.primitive_bitwidth
    return tl.load(table + tensor) + start.to(tl.int64) * (BITS // 8)


@triton.jit
def vectors(length, addresses, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many elements are to be read in whole blocks by 16 bytes a thread: none where an address forbids it.

    ``addresses``: of all tensors that are read or written, bitwise or.
    """
    return tl.where(addresses % 16 == 0, length // BLOCK * BLOCK, 0)


@triton.jit
def read(at, i, length, DTYPE: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """Elements i from an address on, in float32.

    WHOLE: all are below the length, and the address is one of 16 bytes. LAST: nobody reads them again in this step, so
    they need not stay in the cache.
    """
    if WHOLE:
        # Says nothing new of an address that is aligned, but the compiler knows it then, and that no mask is needed.
        p = tl.multiple_of((at // 16 * 16).to(tl.pointer_type(DTYPE)), 16)
        return tl.load(p + i, eviction_policy="evict_first" if LAST else "").to(tl.float32)
    else:
        return tl.load(at.to(tl.pointer_type(DTYPE)) + i, mask=i < length, other=0.0).to(tl.float32)


@triton.jit
def write(at, i, length, x, DTYPE: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """float32 elements, rounded to their type; see `read`."""
    if WHOLE:
        p = tl.multiple_of((at // 16 * 16).to(tl.pointer_type(DTYPE)), 16)
        tl.store(p + i, rounded(x, DTYPE), eviction_policy="evict_first" if LAST else "")
    else:
        tl.store(at.to(tl.pointer_type(DTYPE)) + i, rounded(x, DTYPE), mask=i < length)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 to the nearest value of a type, of two the even one; Triton's interpreter cuts bfloat16 off."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x != x, 0x7FC0, bits)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def gradient_factor(clip, CLIP: tl.constexpr, UPHILL: tl.constexpr):  # type: ignore[no-untyped-def]
    """What gradients are multiplied with: the clip's factor, negative where the step goes uphill."""
    factor = 1.0
    if CLIP:
        factor = tl.load(clip)
    if UPHILL:
        factor = -factor
    return factor
