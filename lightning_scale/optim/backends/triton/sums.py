"""Sums over chunks, layers and everything, in a fixed order: the same bits every time, for nothing is added atomically."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.bucket import TrustRatio
from lightning_scale.optim.backends.triton.chunks import Chunks, QuantizedChunks, chunks_of, pointers
from lightning_scale.optim.backends.triton.elements import address, read, triton_type, vectors
from lightning_scale.optim.backends.triton.launch import block, launch
from lightning_scale.optim.layout import Layout

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


def norms_of_chunks(partial: Tensor, chunks: QuantizedChunks) -> Tensor:
    """[chunks, 2] float64 sums of squares to [2, layers] norms, float64."""
    layers = chunks.begin.numel()
    out = torch.empty(2, layers, dtype=torch.float64, device=partial.device)
    launch(_sum_chunks, layers, partial, chunks.begin, chunks.end, out, BLOCK=_SUM_BLOCK)
    return out.sqrt_()


@triton.jit
def within(x, low, high):  # type: ignore[no-untyped-def]
    """x, or the bound that it is beyond; NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def finish_layer(  # type: ignore[no-untyped-def]
    layer, layers, chunks,
    first,  # [layers + 1]
    partial,  # [2, chunks] float32
    decays, adapts,  # [layers] float32, int8
    rate_at,  # 0-d float32
    stats,  # [3, layers] float32: ‖w‖, the other norm, the ratio
    scale,  # [layers] float32: what pass 2 takes
    coefficient, eps, phi_low, phi_high, low, high,
    PLUS_DECAY: tl.constexpr, RATE_OUTSIDE: tl.constexpr, LARC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norms and the ratio of a layer that has been through pass 1; the same operations as `ratios`."""
    begin, end = tl.load(first + layer), tl.load(first + layer + 1)
    w = tl.sqrt(sum_of_chunks(partial, begin, end, BLOCK)).to(tl.float32)
    n = tl.sqrt(sum_of_chunks(partial + chunks, begin, end, BLOCK)).to(tl.float32)
    below = n + eps
    if PLUS_DECAY:
        below = n + tl.load(decays + layer) * w + eps
    ratio = within(tl.div_rn(coefficient * within(w, phi_low, phi_high), below), low, high)
    if LARC:
        rate = tl.load(rate_at)
        ratio = tl.where(ratio >= rate, 1.0, tl.div_rn(ratio, rate))
    ratio = tl.where((tl.load(adapts + layer) != 0) & (w > 0) & (n > 0), ratio, 1.0)
    tl.store(stats + layer, w)
    tl.store(stats + layers + layer, n)
    tl.store(stats + 2 * layers + layer, ratio)
    if RATE_OUTSIDE:
        tl.store(scale + layer, ratio)
    else:
        tl.store(scale + layer, ratio * tl.load(rate_at))


def bounds(trust: TrustRatio) -> tuple[float, float, float, float]:
    """φ's bounds and the ratio's, as `finish_layer` takes them: what is not bounded lies within these."""
    phi_low, phi_high = trust.weight_norm_clip or (0.0, math.inf)
    low, high = trust.clip or (0.0, math.inf)
    return float(phi_low), float(phi_high), float(low), float(high)


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
