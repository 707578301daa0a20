"""One look at every gradient: is it finite, and how large."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.fused.elements import address, read, triton_type, vectors
from lightning_scale.optim.kernels.fused.launch import block, launch
from lightning_scale.optim.kernels.fused.table import chunks_of, pointers
from lightning_scale.optim.layout import Layout


@triton.jit
def _look(grads, tensor_of, start_of, length_of, square, BLOCK: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """square[chunk] = Σ g² in float64: not finite exactly where an element is not (float32 squares would overflow)."""
    chunk = tl.program_id(0)
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    g_at = address(grads, tensor, start, DTYPE)
    total = tl.zeros([BLOCK], tl.float64)
    whole = vectors(length, g_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        g = read(g_at, begin + tl.arange(0, BLOCK), length, DTYPE, True).to(tl.float64)
        total += g * g
    for begin in range(whole, length, BLOCK):
        g = read(g_at, begin + tl.arange(0, BLOCK), length, DTYPE, False).to(tl.float64)
        total += g * g
    tl.store(square + chunk, tl.sum(total, 0))


def gradient_squares(layout: Layout, grads: Sequence[Tensor]) -> Tensor:
    """Sums of squares of runs of gradients, 1-D float64: NaN or Inf exactly where an element is.

    Args:
        layout: Where they lie.
        grads: One a local tensor, all of one device and dtype.
    """
    device, dtype = grads[0].device, grads[0].dtype
    chunks = chunks_of(layout, device)
    out = torch.empty(chunks.count, dtype=torch.float64, device=device)
    table = pointers(layout, "grads", grads, device)
    launch(
        _look,
        chunks.count,
        table,
        chunks.tensor,
        chunks.start,
        chunks.length,
        out,
        BLOCK=block(),
        DTYPE=triton_type(dtype),
    )
    return out
