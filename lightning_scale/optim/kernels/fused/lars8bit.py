"""LARS with an 8-bit momentum in two passes over the elements; see `eight_bit.reference_lars` for what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.eight_bit.work import CodedLarsBucket
from lightning_scale.optim.kernels.fused.coded_head import (
    chunk_head,
    goes_on,
    moment_places,
    parameter_places,
    read_gradient,
)
from lightning_scale.optim.kernels.fused.coded_launch import PerChunk, code_tables, prepare
from lightning_scale.optim.kernels.fused.coded_moment import largest_of_rows, read_moment, write_moment
from lightning_scale.optim.kernels.fused.elements import gradient_factor
from lightning_scale.optim.kernels.fused.layer_sums import keep_sums, norms_of_chunks, squares
from lightning_scale.optim.kernels.fused.tiles import BLOCK, read, tile, write_rounded
from lightning_scale.optim.kernels.work import FirstPass, Guard


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, m_scales, begin, low, high, factor, going, decay, ratio, rate, sum_w, sum_n,
    values, table, momentum, rest,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, PLAIN: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr, APPLY: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """APPLY: the step; else the sums of squares, with this tile's."""
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read(w_at, i, inside, MASKED).to(tl.float32)
    g = read_gradient(read(g_at, i, inside, MASKED), factor, going, CLIP, UPHILL, TEST)
    if ON_MOMENTUM or APPLY:
        d = tl.where(decay != 0, g + w * decay, g)
        if ON_MOMENTUM:
            m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
            m = m * momentum + d * rest
            d = m * ratio
        else:
            d = d * ratio
            if BUFFER:
                m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
                m = m * momentum + d
                d = d + m * momentum if NESTEROV else m
        if BUFFER and MASKED:  # outside stands what the code 0 stands for
            m = tl.where(inside, m, 0.0)
    if APPLY:
        if RATE_OUTSIDE:
            d = d * rate
        write_rounded(w_at, i, w - d, inside, WEIGHT, MASKED)
        if MASTER:
            write_rounded(p_at, i, w - d, inside, PARAM, MASKED)
        if BUFFER:
            write_moment(
                m_at, m_scales, i, rows, inside, inside_rows, m, largest_of_rows(m), table, True, PLAIN, MASKED
            )
    else:
        sum_w, sum_n = squares(sum_w, w), squares(sum_n, m if ON_MOMENTUM else g)
    return sum_w, sum_n


@triton.jit(do_not_specialize_on_alignment=["lr"])
def _pass(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, buffer_scales,  # [tensors] int64: pointers
    chunks,
    decays,  # [layers] float32
    scale,  # [layers] float32: ratio, times lr unless it stays outside the momentum; of the second pass
    partial,  # [chunks, 2] float64: Σ w², and Σ g² or Σ m²; of the first pass
    lr, finite, clip,  # 0-d: float32, a bool, a float32
    values, table,
    momentum, rest,  # μ, and 1 - μ taken in float64
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, PLAIN: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr,
    ALIGNED: tl.constexpr, APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Both passes. The first reads 8 B an element, on the momentum 9; the second, APPLY, reads 9 and writes 5 (float32)."""
    going = goes_on(finite, TEST)
    if going or not APPLY:
        tensor, base, low, high, layer, at = chunk_head(chunks)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(buffers, buffer_scales, tensor, base, at, PLAIN, ALIGNED)
        factor, decay = gradient_factor(clip, CLIP, UPHILL), tl.load(decays + layer)
        ratio, rate = tl.load(scale + layer) if APPLY else 0.0, tl.load(lr)
        sum_w, sum_n = tl.zeros([ROWS, BLOCK], tl.float64), tl.zeros([ROWS, BLOCK], tl.float64)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                sum_w, sum_n = _tile(
                    p_at, w_at, g_at, m_at, m_scales, begin, low, high, factor, going, decay, ratio, rate, sum_w, sum_n,
                    values, table, momentum, rest, PARAM, WEIGHT, MASTER, PLAIN, ON_MOMENTUM, BUFFER, NESTEROV,
                    RATE_OUTSIDE, APPLY, TEST, CLIP, UPHILL, ROWS, False)  # fmt: skip
            else:
                sum_w, sum_n = _tile(
                    p_at, w_at, g_at, m_at, m_scales, begin, low, high, factor, going, decay, ratio, rate, sum_w, sum_n,
                    values, table, momentum, rest, PARAM, WEIGHT, MASTER, PLAIN, ON_MOMENTUM, BUFFER, NESTEROV,
                    RATE_OUTSIDE, APPLY, TEST, CLIP, UPHILL, ROWS, True)  # fmt: skip
        if not APPLY:
            keep_sums(partial, sum_w, sum_n)


def lars8bit(bucket: CodedLarsBucket, guard: Guard) -> FirstPass:
    """The first pass of a LARS step on a bucket, which changes nothing, and the second, which takes the step in place;
    see `eight_bit.reference_lars.lars`. The norms are ‖w‖, and ‖g‖ or ‖m‖."""
    prepared, device = prepare(bucket, guard), bucket.device
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(prepared.chunks.count, 2, dtype=torch.float64, device=device)
    outside = not bucket.momentum_norm and not bucket.lr_in_momentum

    def run(scale: Tensor, apply: bool) -> None:
        prepared.launch(
            _pass,
            decays,
            scale,
            PerChunk(partial),
            bucket.lr,
            prepared.finite,
            prepared.clip,
            *code_tables(device)[:2],
            float(bucket.momentum),
            1.0 - bucket.momentum,
            ON_MOMENTUM=bucket.momentum_norm,
            BUFFER=bool(bucket.whole),
            NESTEROV=bucket.nesterov,
            RATE_OUTSIDE=outside,
            APPLY=apply,
        )

    def second(ratios: Tensor) -> None:
        run(ratios if outside else (ratios * bucket.lr).contiguous(), True)
        prepared.copy_back()

    run(decays, False)
    return FirstPass(norms_of_chunks(partial, prepared.chunks), second)
