"""Adam's arithmetic in kernels: each operation rounds once, as in `eight_bit.adam`; and the bias corrections."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import bias_correction
from lightning_scale.optim.kernels.eight_bit.work import CodedAdamBucket
from lightning_scale.optim.kernels.fused.division import ordinary_quotient, ordinary_root, quotient

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


def bias_corrections(bucket: CodedAdamBucket) -> Tensor:
    """[tensors, 4] float32: 1-β1^t of this step, computed in float64, its reciprocal, and the same of β2."""
    t = torch.stack(bucket.steps).to(bucket.device) + 1
    first, second = (bias_correction(t, beta).float() for beta in bucket.betas)
    return torch.stack([first, 1 / first, second, 1 / second], dim=1)
