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


@triton.jit(do_not_specialize=["chunks"])
def _total(square, chunks, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out = [sums that are not finite, Σ square], float64; one program."""
    total, bad = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for begin in range(0, chunks, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        sums = tl.load(square + i, mask=i < chunks, other=0.0)
        total += sums
        bad += tl.where(sums < float("inf"), 0.0, 1.0)
    tl.store(out, tl.sum(bad, 0))
    tl.store(out + 1, tl.sum(total, 0))


def gradient_total(layout: Layout, grads: Sequence[Tensor]) -> Tensor:
    """[2] float64: how many runs of the gradients hold a NaN or an Inf, and the sum of all squares.

    Args:
        layout: Where they lie.
        grads: One a local tensor, all of one device and dtype.
    """
    device = grads[0].device
    chunks = chunks_of(layout, device)
    square = torch.empty(chunks.count, dtype=torch.float64, device=device)
    launch(
        _look, chunks.count, pointers(layout, "grads", grads, device), chunks.tensor, chunks.start, chunks.length, square,
        BLOCK=block(), DTYPE=triton_type(grads[0].dtype),
    )  # fmt: skip
    total = torch.empty(2, dtype=torch.float64, device=device)
    launch(_total, 1, square, chunks.count, total, BLOCK=1024)
    return total
