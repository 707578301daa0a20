"""Sums over layers and over everything, in a fixed order: the same bits every time, for nothing is added atomically."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.fused.launch import launch
from lightning_scale.optim.kernels.fused.table import Chunks

SUM_BLOCK = 256


@triton.jit
def sum_of_chunks(partial, begin, end, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Σ partial[begin:end] in float64."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(partial + i, mask=i < end, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit
def _norms_of_layers(partial, first, out, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[column, layer] = the root of the sum of partial[column, chunk] over the layer's chunks."""
    layer = tl.program_id(0)
    begin, end, chunks = tl.load(first + layer), tl.load(first + layer + 1), tl.load(first + tl.num_programs(0))
    for column in tl.static_range(COLUMNS):
        norm = tl.sqrt(sum_of_chunks(partial + column * chunks, begin, end, BLOCK))
        tl.store(out + column * tl.num_programs(0) + layer, norm)


def norms_of_layers(partial: Tensor, chunks: Chunks) -> Tensor:
    """[columns, chunks] partial sums of squares to [columns, layers] norms, float64."""
    columns, layers = partial.shape[0], chunks.first.numel() - 1
    out = torch.empty(columns, layers, dtype=torch.float64, device=partial.device)
    launch(_norms_of_layers, layers, partial, chunks.first, out, COLUMNS=columns, BLOCK=SUM_BLOCK)
    return out
