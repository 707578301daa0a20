"""One look at every gradient: is it finite, and how large."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.fused.elements import pointer, triton_type
from lightning_scale.optim.kernels.fused.table import Chunks


@triton.jit
def _look(grads, tensor_of, start_of, length_of, square, BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """square[chunk] = Σ g² in float64: not finite exactly where an element is not (float32 squares would overflow)."""
    chunk = tl.program_id(0)
    length = tl.load(length_of + chunk)
    g_at = pointer(grads, tl.load(tensor_of + chunk), DTYPE) + tl.load(start_of + chunk)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        g = tl.load(g_at + i, mask=i < length, other=0.0).to(tl.float64)
        total += g * g
    tl.store(square + chunk, tl.sum(total, 0))


def gradient_squares(grads: Tensor, chunks: Chunks, dtype: torch.dtype, block: int) -> Tensor:
    """[chunks] float64: the sum of squares of each chunk's gradients; NaN or Inf exactly where an element is.

    Args:
        grads: [tensors] int64, where the gradients begin.
        chunks: Which elements.
        dtype: Of the gradients.
        block: Elements at a time.
    """
    out = torch.empty(chunks.count, dtype=torch.float64, device=grads.device)
    if chunks.count:
        _look[(chunks.count,)](
            grads, chunks.tensor, chunks.start, chunks.length, out, BLOCK=block, DTYPE=triton_type(dtype)
        )
    return out
