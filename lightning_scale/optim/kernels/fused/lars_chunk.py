"""LARS on one chunk of elements, in two passes; see `reference_lars` for what they compute."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.elements import address, gradient_factor, read, vectors, write


@triton.jit
def _norms_of(  # type: ignore[no-untyped-def]
    w_at, g_at, m_at, i, length, momentum, rest, decay, factor,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, ON_MOMENTUM: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 1; w², and g² or m²."""
    w, n = read(w_at, i, length, WEIGHT, WHOLE), read(g_at, i, length, GRAD, WHOLE)
    if SCALED:
        n = n * factor
    if ON_MOMENTUM:
        n = momentum * read(m_at, i, length, tl.float32, WHOLE) + rest * (n + decay * w)
        write(m_at, i, length, n, tl.float32, WHOLE)
    return w * w, n * n


@triton.jit
def measure(  # type: ignore[no-untyped-def]
    chunk,
    weights, grads, buffers,  # [tensors] int64: pointers
    tensor_of, start_of, length_of, layer_of,  # [chunks]
    decays,  # [layers] float32
    finite, clip,  # 0-d: a bool (as int8), a float32
    partial, chunks,  # [2, chunks] float32: Σ w², and Σ g² or Σ m²
    momentum, rest,  # μ, and 1 - μ taken in float64
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1: the chunk's share of ‖w‖² and of ‖g‖², or of ‖m‖² of the momentum m = μm + (1-μ)(g + λw), kept in place.

    Reads 8 B an element (float32); on the momentum 12, and writes 4. On a step that is skipped: nothing, and zeros.
    """
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    w_at, g_at = address(weights, tensor, start, WEIGHT), address(grads, tensor, start, GRAD)
    m_at = w_at
    if ON_MOMENTUM:
        m_at = address(buffers, tensor, start, tl.float32)
    decay = tl.load(decays + tl.load(layer_of + chunk))
    factor = gradient_factor(clip, CLIP, UPHILL)
    sum_w, sum_n = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    whole = vectors(length, w_at | g_at | m_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        ww, nn = _norms_of(w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, momentum, rest, decay, factor,
                           WEIGHT, GRAD, ON_MOMENTUM, CLIP or UPHILL, True)  # fmt: skip
        sum_w += ww
        sum_n += nn
    for begin in range(whole, length, BLOCK):
        ww, nn = _norms_of(w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, momentum, rest, decay, factor,
                           WEIGHT, GRAD, ON_MOMENTUM, CLIP or UPHILL, False)  # fmt: skip
        sum_w += ww
        sum_n += nn
    tl.store(partial + chunk, tl.sum(sum_w, 0))
    tl.store(partial + chunks + chunk, tl.sum(sum_n, 0))


@triton.jit
def _step_of(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, i, length, decay, ratio, factor, rate, momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr,
    SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 2."""
    w = read(w_at, i, length, WEIGHT, WHOLE, True)
    if ON_MOMENTUM:
        d = ratio * read(m_at, i, length, tl.float32, WHOLE, True)
    else:
        g = read(g_at, i, length, GRAD, WHOLE, True)
        if SCALED:
            g = g * factor
        d = ratio * (g + decay * w)
        if BUFFER:
            m = momentum * read(m_at, i, length, tl.float32, WHOLE, True) + d
            write(m_at, i, length, m, tl.float32, WHOLE, True)
            d = d + momentum * m if NESTEROV else m
    if RATE_OUTSIDE:
        d = d * rate
    w = w - d
    write(w_at, i, length, w, WEIGHT, WHOLE, True)
    if MASTER:
        write(p_at, i, length, w, PARAM, WHOLE, True)


@triton.jit
def apply(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, grads, buffers,
    tensor_of, start_of, length_of, layer_of,
    decays,
    scale,  # [layers] float32: ratio, times the rate unless it stays outside the momentum
    finite, clip,
    rate_at,  # 0-d float32: the learning rate, where it stays outside
    momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2: the step. Reads 12 B an element and writes 8 (float32); on the momentum 8 and 4."""
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    p_at, w_at = address(parameters, tensor, start, PARAM), address(weights, tensor, start, WEIGHT)
    g_at, m_at = w_at, w_at
    if not ON_MOMENTUM:
        g_at = address(grads, tensor, start, GRAD)
    if BUFFER:
        m_at = address(buffers, tensor, start, tl.float32)
    decay, ratio = tl.load(decays + layer), tl.load(scale + layer)
    factor = gradient_factor(clip, CLIP, UPHILL)
    rate = 1.0
    if RATE_OUTSIDE:
        rate = tl.load(rate_at)
    whole = vectors(length, p_at | w_at | g_at | m_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        _step_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, decay, ratio, factor, rate, momentum,
                 PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, BUFFER, NESTEROV, RATE_OUTSIDE, CLIP or UPHILL,
                 True)  # fmt: skip
    for begin in range(whole, length, BLOCK):
        _step_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, decay, ratio, factor, rate, momentum,
                 PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, BUFFER, NESTEROV, RATE_OUTSIDE, CLIP or UPHILL,
                 False)  # fmt: skip
