"""LAMB on one chunk of elements, in two passes; see `reference_lamb` for what they compute."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.elements import address, gradient_factor, read, vectors, write


@triton.jit
def _update(m, v, w, correction1, correction2, eps, decay, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """u = m̂ / (√v̂ + ε) + λw."""
    if BIAS:
        m = tl.div_rn(m, correction1)
        v = tl.div_rn(v, correction2)
    return tl.div_rn(m, tl.sqrt_rn(v) + eps) + decay * w


@triton.jit
def _moments_of(  # type: ignore[no-untyped-def]
    w_at, g_at, m_at, v_at, i, length,
    beta1, rest1, beta2, rest2, correction1, correction2, eps, decay, factor,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, BIAS: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 1; w² and u²."""
    w, g = read(w_at, i, length, WEIGHT, WHOLE), read(g_at, i, length, GRAD, WHOLE, True)
    m, v = read(m_at, i, length, tl.float32, WHOLE), read(v_at, i, length, tl.float32, WHOLE)
    if SCALED:
        g = g * factor
    new_m = beta1 * m + rest1 * g
    new_v = beta2 * v + rest2 * g * g
    write(m_at, i, length, new_m, tl.float32, WHOLE)
    write(v_at, i, length, new_v, tl.float32, WHOLE)
    u = _update(new_m, new_v, w, correction1, correction2, eps, decay, BIAS)
    if not WHOLE:
        u = tl.where(i < length, u, 0.0)  # with ε = 0, what lies outside is 0/0
    return w * w, u * u


@triton.jit
def measure(  # type: ignore[no-untyped-def]
    chunk,
    weights, grads, moments1, moments2,  # [tensors] int64: pointers
    tensor_of, start_of, length_of, layer_of,  # [chunks]
    corrections,  # [tensors, 2] float32
    decays,  # [layers] float32
    finite, clip,  # 0-d: a bool (as int8), a float32
    partial, chunks,  # [2, chunks] float32: Σ w², Σ u²
    beta1, rest1, beta2, rest2, eps,  # rest = 1 - beta, taken in float64
    WEIGHT: tl.constexpr, GRAD: tl.constexpr,
    BIAS: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1: moments in place, and the chunk's share of ‖w‖² and ‖u‖². Reads 16 B an element (float32), writes 8.

    On a step that is skipped: nothing, and zeros.
    """
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    w_at, g_at = address(weights, tensor, start, WEIGHT), address(grads, tensor, start, GRAD)
    m_at, v_at = address(moments1, tensor, start, tl.float32), address(moments2, tensor, start, tl.float32)
    correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
    decay = tl.load(decays + layer)
    factor = gradient_factor(clip, CLIP, UPHILL)
    sum_w, sum_u = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    whole = vectors(length, w_at | g_at | m_at | v_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        ww, uu = _moments_of(w_at, g_at, m_at, v_at, i, length, beta1, rest1, beta2, rest2, correction1, correction2,
                             eps, decay, factor, WEIGHT, GRAD, BIAS, CLIP or UPHILL, True)  # fmt: skip
        sum_w += ww
        sum_u += uu
    for begin in range(whole, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        ww, uu = _moments_of(w_at, g_at, m_at, v_at, i, length, beta1, rest1, beta2, rest2, correction1, correction2,
                             eps, decay, factor, WEIGHT, GRAD, BIAS, CLIP or UPHILL, False)  # fmt: skip
        sum_w += ww
        sum_u += uu
    tl.store(partial + chunk, tl.sum(sum_w, 0))
    tl.store(partial + chunks + chunk, tl.sum(sum_u, 0))


@triton.jit
def _step_of(  # type: ignore[no-untyped-def]
    p_at, w_at, m_at, v_at, i, length, correction1, correction2, eps, decay, rate,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 2."""
    w = read(w_at, i, length, WEIGHT, WHOLE, True)
    m, v = read(m_at, i, length, tl.float32, WHOLE, True), read(v_at, i, length, tl.float32, WHOLE, True)
    w = w - rate * _update(m, v, w, correction1, correction2, eps, decay, BIAS)
    write(w_at, i, length, w, WEIGHT, WHOLE, True)
    if MASTER:
        write(p_at, i, length, w, PARAM, WHOLE, True)


@triton.jit
def apply(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, moments1, moments2,
    tensor_of, start_of, length_of, layer_of,
    corrections, decays,
    scale,  # [layers] float32: lr · ratio
    finite,
    eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr, TEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2: w ← w - lr · ratio · u. Reads 12 B an element (float32), writes 4."""
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    p_at, w_at = address(parameters, tensor, start, PARAM), address(weights, tensor, start, WEIGHT)
    m_at, v_at = address(moments1, tensor, start, tl.float32), address(moments2, tensor, start, tl.float32)
    correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
    decay, rate = tl.load(decays + layer), tl.load(scale + layer)
    whole = vectors(length, p_at | w_at | m_at | v_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        _step_of(p_at, w_at, m_at, v_at, i, length, correction1, correction2, eps, decay, rate,
                 PARAM, WEIGHT, MASTER, BIAS, True)  # fmt: skip
    for begin in range(whole, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        _step_of(p_at, w_at, m_at, v_at, i, length, correction1, correction2, eps, decay, rate,
                 PARAM, WEIGHT, MASTER, BIAS, False)  # fmt: skip
