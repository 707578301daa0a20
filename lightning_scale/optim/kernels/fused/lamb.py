"""LAMB in two passes over the elements; see `reference_lamb` for what they compute."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.fused.elements import gradient_factor, pointer, rounded, triton_type
from lightning_scale.optim.kernels.fused.launch import block, guard_arguments, launch
from lightning_scale.optim.kernels.fused.sums import norms_of_layers
from lightning_scale.optim.kernels.fused.table import chunks_of, pointers
from lightning_scale.optim.kernels.masking import unless_skipped
from lightning_scale.optim.kernels.work import FirstPass, Guard, LambBucket


@triton.jit
def _update(m, v, w, correction1, correction2, eps, decay, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """u = m̂ / (√v̂ + ε) + λw."""
    if BIAS:
        m = tl.div_rn(m, correction1)
        v = tl.div_rn(v, correction2)
    return tl.div_rn(m, tl.sqrt_rn(v) + eps) + decay * w


@triton.jit
def _moments(  # type: ignore[no-untyped-def]
    weights, grads, moments1, moments2,  # [tensors] int64: pointers
    tensor_of, start_of, length_of, layer_of,  # [chunks]
    corrections,  # [tensors, 2] float32
    decays,  # [layers] float32
    finite, clip,  # 0-d: a bool (as int8), a float32
    partial,  # [2, chunks] float32: Σ w², Σ u²
    beta1, rest1, beta2, rest2, eps,  # rest = 1 - beta, taken in float64
    WEIGHT: tl.constexpr, GRAD: tl.constexpr,
    BIAS: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1: moments in place, and each chunk's share of ‖w‖² and ‖u‖². Reads 16 B an element (float32), writes 8."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    w_at, g_at = pointer(weights, tensor, WEIGHT) + start, pointer(grads, tensor, GRAD) + start
    m_at, v_at = pointer(moments1, tensor, tl.float32) + start, pointer(moments2, tensor, tl.float32) + start
    correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
    decay = tl.load(decays + layer)
    kept = length  # elements to write: none on a step that is skipped
    if TEST:
        kept = tl.where(tl.load(finite) != 0, length, 0)
    factor = gradient_factor(clip, CLIP, UPHILL)
    sum_w, sum_u = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        inside = i < length
        w = tl.load(w_at + i, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(g_at + i, mask=inside, other=0.0).to(tl.float32)
        m, v = tl.load(m_at + i, mask=inside, other=0.0), tl.load(v_at + i, mask=inside, other=0.0)
        if CLIP or UPHILL:
            g = g * factor
        new_m = beta1 * m + rest1 * g
        new_v = beta2 * v + rest2 * g * g
        tl.store(m_at + i, new_m, mask=i < kept)
        tl.store(v_at + i, new_v, mask=i < kept)
        u = _update(new_m, new_v, w, correction1, correction2, eps, decay, BIAS)
        u = tl.where(inside, u, 0.0)  # with ε = 0, what lies outside is 0/0
        sum_w += w * w
        sum_u += u * u
    tl.store(partial + chunk, tl.sum(sum_w, 0))
    tl.store(partial + chunks + chunk, tl.sum(sum_u, 0))


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    params, weights, moments1, moments2,
    tensor_of, start_of, length_of, layer_of,
    corrections, decays,
    scale,  # [layers] float32: lr · ratio
    finite,
    eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr, TEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2: w ← w - lr · ratio · u. Reads 12 B an element (float32), writes 4."""
    # Backwards, for what pass 1 saw last is what the cache still holds.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    step = True
    if TEST:
        step = tl.load(finite) != 0
    if step:
        tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
        layer = tl.load(layer_of + chunk)
        w_at = pointer(weights, tensor, WEIGHT) + start
        m_at, v_at = pointer(moments1, tensor, tl.float32) + start, pointer(moments2, tensor, tl.float32) + start
        correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
        decay, rate = tl.load(decays + layer), tl.load(scale + layer)
        for begin in range(0, length, BLOCK):
            i = begin + tl.arange(0, BLOCK)
            inside = i < length
            w = tl.load(w_at + i, mask=inside, other=0.0).to(tl.float32)
            m, v = tl.load(m_at + i, mask=inside, other=0.0), tl.load(v_at + i, mask=inside, other=0.0)
            w = w - rate * _update(m, v, w, correction1, correction2, eps, decay, BIAS)
            tl.store(w_at + i, rounded(w, WEIGHT), mask=inside)
            if MASTER:
                tl.store(pointer(params, tensor, PARAM) + start + i, rounded(w, PARAM), mask=inside)


def lamb(bucket: LambBucket, guard: Guard) -> FirstPass:
    """One LAMB step on a bucket, in place; see `reference_lamb.lamb`."""
    layout, device = bucket.layout, bucket.params[0].device
    chunks = chunks_of(layout, device)
    finite, clip, options = guard_arguments(guard, device)
    types = {"WEIGHT": triton_type(bucket.weights[0].dtype), "BIAS": bucket.bias_correction, "BLOCK": block()}
    weights = pointers(layout, "weights", bucket.weights, device)
    moments1, moments2 = (pointers(layout, name, getattr(bucket, name), device) for name in ("exp_avg", "exp_avg_sq"))
    decays = constant(layout, "decays", bucket.weight_decay, torch.float32, device)
    corrections = _corrections(bucket, guard)
    partial = torch.empty(2, chunks.count, device=device)
    beta1, beta2 = bucket.betas
    launch(
        _moments,
        chunks.count,
        weights,
        pointers(layout, "grads", bucket.grads, device),
        moments1,
        moments2,
        *chunks.columns,
        corrections,
        decays,
        finite,
        clip,
        partial,
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        bucket.eps,
        GRAD=triton_type(bucket.grads[0].dtype),
        UPHILL=bucket.maximize,
        **types,
        **options,
    )

    def second(ratio: Tensor) -> None:
        launch(
            _apply,
            chunks.count,
            pointers(layout, "params", bucket.params, device),
            weights,
            moments1,
            moments2,
            *chunks.columns,
            corrections,
            decays,
            (ratio * bucket.lr).contiguous(),
            finite,
            bucket.eps,
            PARAM=triton_type(bucket.params[0].dtype),
            MASTER=bucket.params[0] is not bucket.weights[0],
            TEST=options["TEST"],
            **types,
        )

    return FirstPass(norms_of_layers(partial, chunks), second)


def _corrections(bucket: LambBucket, guard: Guard) -> Tensor:
    """[tensors, 2] float32: 1 - β^t, after the steps t have counted this one, unless it is skipped."""
    torch._foreach_add_(bucket.steps, unless_skipped(1.0, 0.0, guard, bucket.steps[0]))
    # A first step that is skipped has counted none: any finite correction serves, its result is not used.
    t = torch.stack(bucket.steps).double().clamp(min=1)
    return torch.stack([1 - beta**t for beta in bucket.betas], dim=1).float()
