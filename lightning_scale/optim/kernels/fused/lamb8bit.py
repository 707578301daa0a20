"""LAMB with 8-bit moments in two passes over the elements; see `eight_bit.reference_lamb` for what they compute.

The first pass changes nothing, the second computes the same numbers again: moments in 8 bits are a quarter of what storing
the unrounded ones between the passes would take.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.eight_bit.work import CodedLambBucket
from lightning_scale.optim.kernels.fused.adam import adam_direction, adam_moments, bias_corrections
from lightning_scale.optim.kernels.fused.coded_head import (
    chunk_head,
    goes_on,
    moment_places,
    parameter_places,
    read_gradient,
)
from lightning_scale.optim.kernels.fused.coded_launch import PerChunk, code_tables, count, prepare
from lightning_scale.optim.kernels.fused.coded_moment import largest_of_rows, read_moment, write_moment
from lightning_scale.optim.kernels.fused.elements import gradient_factor
from lightning_scale.optim.kernels.fused.layer_sums import keep_sums, norms_of_chunks, squares
from lightning_scale.optim.kernels.fused.tiles import BLOCK, read, tile, write_rounded
from lightning_scale.optim.kernels.work import FirstPass, Guard


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, factor, going, decay, rate, sum_w, sum_u,
    corrections, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr, PLAIN: tl.constexpr,
    APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr,
    ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """APPLY: the step; else the sums of squares, with this tile's."""
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read(w_at, i, inside, MASKED).to(tl.float32)
    g = read_gradient(read(g_at, i, inside, MASKED), factor, going, CLIP, UPHILL, TEST)
    m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, signed_values, PLAIN, MASKED)
    v = read_moment(v_at, v_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
    m, v = adam_moments(g, m, v, beta1, rest1, beta2, rest2)
    if MASKED:  # outside stands what the code 0 stands for
        m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
    m_bits, v_bits = largest_of_rows(m), largest_of_rows(v)
    u = adam_direction(m, v, m_bits, v_bits, corrections, eps, BIAS, MASKED)
    u = tl.where(decay != 0, u + w * decay, u)
    if APPLY:
        w = w - u * rate
        write_rounded(w_at, i, w, inside, WEIGHT, MASKED)
        if MASTER:
            write_rounded(p_at, i, w, inside, PARAM, MASKED)
        write_moment(m_at, m_scales, i, rows, inside, inside_rows, m, m_bits, signed_table, True, PLAIN, MASKED)
        write_moment(v_at, v_scales, i, rows, inside, inside_rows, v, v_bits, table, False, PLAIN, MASKED)
    else:
        if MASKED:  # and with ε = 0 it may be 0/0
            u = tl.where(inside, u, 0.0)
        sum_w, sum_u = squares(sum_w, w), squares(sum_u, u)
    return sum_w, sum_u


@triton.jit
def _pass(  # type: ignore[no-untyped-def]
    parameters, weights, grads, firsts, first_scales, seconds, second_scales,  # [tensors] int64: pointers
    chunks,
    corrections,  # [tensors, 4] float32
    decays,  # [layers] float32
    scale,  # [layers] float32: ratio · lr, of the second pass
    partial,  # [chunks, 2] float64: Σ w², Σ u², of the first pass
    finite, clip,  # 0-d: a bool, a float32
    signed_values, signed_table, values, table,
    beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr,
    PLAIN: tl.constexpr, ALIGNED: tl.constexpr, APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Both passes. The first reads 10 B an element; the second, APPLY, reads 10 and writes 6 (float32)."""
    going = goes_on(finite, TEST)
    if going or not APPLY:
        tensor, base, low, high, layer, at = chunk_head(chunks)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(firsts, first_scales, tensor, base, at, PLAIN, ALIGNED)
        v_at, v_scales = moment_places(seconds, second_scales, tensor, base, at, PLAIN, ALIGNED)
        factor, decay = gradient_factor(clip, CLIP, UPHILL), tl.load(decays + layer)
        rate = tl.load(scale + layer) if APPLY else 0.0
        sum_w, sum_u = tl.zeros([ROWS, BLOCK], tl.float64), tl.zeros([ROWS, BLOCK], tl.float64)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                sum_w, sum_u = _tile(
                    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, factor, going, decay, rate, sum_w,
                    sum_u, corrections + 4 * tensor, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2,
                    eps, PARAM, WEIGHT, MASTER, BIAS, PLAIN, APPLY, TEST, CLIP, UPHILL, ROWS, False)  # fmt: skip
            else:
                sum_w, sum_u = _tile(
                    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, factor, going, decay, rate, sum_w,
                    sum_u, corrections + 4 * tensor, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2,
                    eps, PARAM, WEIGHT, MASTER, BIAS, PLAIN, APPLY, TEST, CLIP, UPHILL, ROWS, True)  # fmt: skip
        if not APPLY:
            keep_sums(partial, sum_w, sum_u)


def lamb8bit(bucket: CodedLambBucket, guard: Guard) -> FirstPass:
    """The first pass of a LAMB step on a bucket, which changes nothing, and the second, which takes the step in place;
    see `eight_bit.reference_lamb.lamb`."""
    prepared, device = prepare(bucket, guard), bucket.device
    beta1, beta2 = bucket.betas
    corrections = bias_corrections(bucket)
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(prepared.chunks.count, 2, dtype=torch.float64, device=device)

    def run(scale: Tensor, apply: bool) -> None:
        numbers = map(float, (beta1, 1 - beta1, beta2, 1 - beta2, bucket.eps))
        prepared.launch(
            _pass,
            corrections,
            decays,
            scale,
            PerChunk(partial),
            prepared.finite,
            prepared.clip,
            *code_tables(device),
            *numbers,
            BIAS=bucket.bias_correction,
            APPLY=apply,
        )

    def second(ratios: Tensor) -> None:
        run((ratios * bucket.lr).contiguous(), True)
        prepared.copy_back()
        count(bucket.steps, guard)

    run(decays, False)
    return FirstPass(norms_of_chunks(partial, prepared.chunks), second)
