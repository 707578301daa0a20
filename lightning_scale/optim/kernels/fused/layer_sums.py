"""Norms of layers from their chunks' sums of squares, in float64 and a fixed order: the same bits every time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.fused.coded_chunks import CodedChunks
from lightning_scale.optim.kernels.fused.launch import launch

_SUM_BLOCK = 256


@triton.jit
def squares(total, x):  # type: ignore[no-untyped-def]
    """total + x², element by element in float64, where the square of a float32 is exact and never too large."""
    x = x.to(tl.float64)
    return tl.fma(x, x, total)


@triton.jit
def keep_sums(partial, one, other):  # type: ignore[no-untyped-def]
    """Leave both sums of a program's chunk, from [rows, 256] float64 each."""
    here = partial + 2 * tl.program_id(0)
    tl.store(here, tl.sum(tl.sum(one, 1), 0))
    tl.store(here + 1, tl.sum(tl.sum(other, 1), 0))


@triton.jit
def _sum_chunks(partial, begin, end, out, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[column, layer] = the sum of partial[chunk, column] over the layer's chunks."""
    layer, layers = tl.program_id(0), tl.num_programs(0)
    first, last = tl.load(begin + layer), tl.load(end + layer)
    for column in tl.static_range(2):
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(first, last, BLOCK):
            i = start + tl.arange(0, BLOCK)
            total += tl.load(partial + 2 * i + column, mask=i < last, other=0.0)
        tl.store(out + column * layers + layer, tl.sum(total, 0))


def norms_of_chunks(partial: Tensor, chunks: CodedChunks) -> Tensor:
    """[chunks, 2] float64 sums of squares to [2, layers] norms, float64."""
    layers = chunks.begin.numel()
    out = torch.empty(2, layers, dtype=torch.float64, device=partial.device)
    launch(_sum_chunks, layers, partial, chunks.begin, chunks.end, out, BLOCK=_SUM_BLOCK)
    return out.sqrt_()
