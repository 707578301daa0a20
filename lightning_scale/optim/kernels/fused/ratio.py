"""A layer's norms and trust ratio inside a kernel, where no other rank holds a share of the layer."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.sums import sum_of_chunks
from lightning_scale.optim.kernels.work import TrustRatio


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
    PLUS_DECAY: tl.constexpr, RATE_OUTSIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norms and the ratio of a layer that has been through pass 1; the same operations as `ratios`."""
    begin, end = tl.load(first + layer), tl.load(first + layer + 1)
    w = tl.sqrt(sum_of_chunks(partial, begin, end, BLOCK)).to(tl.float32)
    n = tl.sqrt(sum_of_chunks(partial + chunks, begin, end, BLOCK)).to(tl.float32)
    below = n
    if PLUS_DECAY:
        below = n + tl.load(decays + layer) * w + eps
    ratio = within(tl.div_rn(coefficient * within(w, phi_low, phi_high), below), low, high)
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
