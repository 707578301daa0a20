"""What every kernel does with elements: find them, read them as float32, and the types they have."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def supported(dtype: torch.dtype) -> bool:
    """Whether the kernels take tensors of this type (float64 goes the plain way)."""
    return dtype in _TYPES


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for a type."""
    return _TYPES[dtype]


@triton.jit
def pointer(table, tensor, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where a tensor of a table of pointers begins."""
    return tl.load(table + tensor).to(tl.pointer_type(DTYPE))
