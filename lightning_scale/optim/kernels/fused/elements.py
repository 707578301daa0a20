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
def pointer(table, tensor, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a tensor of a table of pointers begins."""
    return tl.load(table + tensor).to(tl.pointer_type(DTYPE))


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
