"""AdamW with 8-bit moments in one pass over the elements, and Adam's arithmetic, which LAMB shares."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.device import bias_correction, constant
from lightning_scale.optim.backends.triton.elements import (
    BLOCK,
    chunk_head,
    goes_on,
    gradient_factor,
    moment_places,
    parameter_places,
    read_gradient,
    read_tile,
    read_weight_tile,
    tile,
    write_rounded,
    write_weight_tile,
)
from lightning_scale.optim.backends.triton.launch import code_tables, count, prepare
from lightning_scale.optim.backends.triton.quantization import (
    largest_of_rows,
    ordinary_quotient,
    ordinary_root,
    quotient,
    read_moment,
    write_moment,
)

# The bits of 2^-100 and 2^60. Blocks of a v within them, beside an m that is not larger, take quotients and root the short way:
# the same bits, but that a direction below 2^-40 may be off in its last one.
_SMALL = tl.constexpr(0x0D800000)
_LARGE = tl.constexpr(0x5D800000)


@triton.jit
def adam_moments(g, m, v, beta1, rest1, beta2, rest2):  # type: ignore[no-untyped-def]
    """This step's m and v; rest = 1 - beta, taken in float64."""
    return m * beta1 + g * rest1, v * beta2 + (g * rest2) * g


@triton.jit
def adam_direction(m, v, m_bits, v_bits, corrections, eps, BIAS: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """m̂ / (√v̂ + ε).

    Args:
        m: The tile's m.
        v: Its v.
        m_bits: `largest_of_rows` of m.
        v_bits: And of v.
        corrections: The tensor's row of `bias_corrections`.
        eps: ε.
    """
    if MASKED:
        return _any_direction(m, v, corrections, eps, BIAS)
    else:
        smallest = tl.min(tl.min(v.to(tl.int32, bitcast=True), 1), 0)
        if (smallest >= _SMALL) & (tl.max(v_bits, 0) < _LARGE) & (tl.max(m_bits, 0) < _LARGE):
            u = _ordinary_direction(m, v, corrections, eps, BIAS)
        else:
            u = _any_direction(m, v, corrections, eps, BIAS)
        return u


@triton.jit
def _ordinary_direction(m, v, corrections, eps, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    if BIAS:
        m = quotient(m, tl.load(corrections), tl.load(corrections + 1))
        v = quotient(v, tl.load(corrections + 2), tl.load(corrections + 3))
    return ordinary_quotient(m, ordinary_root(v) + eps)


@triton.jit
def _any_direction(m, v, corrections, eps, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    if BIAS:
        m, v = tl.div_rn(m, tl.load(corrections)), tl.div_rn(v, tl.load(corrections + 2))
    return tl.div_rn(m, tl.sqrt_rn(v) + eps)


def bias_corrections(bucket: Bucket) -> Tensor:
    """[tensors, 4] float32: 1-β1^t of this step, computed in float64, its reciprocal, and the same of β2."""
    t = torch.stack(bucket.steps).to(bucket.device) + 1
    first, second = (bias_correction(t, beta).float() for beta in bucket.group["betas"])
    return torch.stack([first, 1 / first, second, 1 / second], dim=1)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, kept, rate,
    corrections, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, PLAIN: tl.constexpr,
    CLIP: tl.constexpr, UPHILL: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read_weight_tile(p_at, w_at, i, inside, PARAM, MASTER, MASKED)
    g = read_gradient(read_tile(g_at, i, inside, MASKED), factor, True, CLIP, UPHILL, False)
    m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, signed_values, PLAIN, MASKED)
    v = read_moment(v_at, v_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
    m, v = adam_moments(g, m, v, beta1, rest1, beta2, rest2)
    if MASKED:  # what stands outside has a code of 0, which need not stand for 0
        m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
    m_bits, v_bits = largest_of_rows(m), largest_of_rows(v)
    w = w * kept - adam_direction(m, v, m_bits, v_bits, corrections, eps, True, MASKED) * rate
    write_weight_tile(w_at, i, w, inside, key, WEIGHT, STOCHASTIC, MASKED)
    if MASTER:
        write_rounded(p_at, i, w, inside, PARAM, MASKED)
    write_moment(m_at, m_scales, i, rows, inside, inside_rows, m, m_bits, signed_table, True, PLAIN, MASKED)
    write_moment(v_at, v_scales, i, rows, inside, inside_rows, v, v_bits, table, False, PLAIN, MASKED)


@triton.jit(do_not_specialize_on_alignment=["lr"])
def _step(  # type: ignore[no-untyped-def]
    parameters, weights, grads, firsts, first_scales, seconds, second_scales,  # [tensors] int64: pointers
    chunks,
    keys,  # [chunks, 4] int32: see `write_weight`
    corrections,  # [tensors, 4] float32
    kept_of,  # [layers] float32: 1 - lr λ
    lr, finite, clip,  # 0-d: float32, a bool, a float32
    signed_values, signed_table, values, table,
    beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    PLAIN: tl.constexpr,
    ALIGNED: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """w ← w·(1 - lr·λ) - lr · m̂/(√v̂ + ε). Reads 10 B an element and writes 6 (float32)."""
    if goes_on(finite, TEST):
        tensor, base, low, high, layer, at = chunk_head(chunks)
        key = keys + 4 * tl.program_id(0)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(firsts, first_scales, tensor, base, at, PLAIN, ALIGNED)
        v_at, v_scales = moment_places(seconds, second_scales, tensor, base, at, PLAIN, ALIGNED)
        factor, kept, rate = gradient_factor(clip, CLIP, UPHILL), tl.load(kept_of + layer), tl.load(lr)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                _tile(p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, kept, rate,
                      corrections + 4 * tensor, signed_values, signed_table, values, table,
                      beta1, rest1, beta2, rest2, eps, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, CLIP, UPHILL, ROWS,
                      False)  # fmt: skip
            else:
                _tile(p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, kept, rate,
                      corrections + 4 * tensor, signed_values, signed_table, values, table,
                      beta1, rest1, beta2, rest2, eps, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, CLIP, UPHILL, ROWS,
                      True)  # fmt: skip


def adamw8bit(bucket: Bucket, guard: Guard) -> None:
    """One AdamW step on a bucket, in place; see `reference.adamw`."""
    if not bucket.params:
        return
    prepared, device = prepare(bucket, guard), bucket.device
    beta1, beta2 = bucket.group["betas"]
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    prepared.launch(
        _step,
        bias_corrections(bucket),
        1 - bucket.lr * decays,
        bucket.lr,
        prepared.finite,
        prepared.clip,
        *code_tables(device),
        *map(float, (beta1, 1 - beta1, beta2, 1 - beta2, bucket.group["eps"])),
    )
    prepared.copy_back()
    count(bucket.steps, guard)
