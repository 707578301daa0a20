"""Adam's arithmetic in kernels: each operation rounds once, as in `eight_bit.adam`; and the bias corrections."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.work import CodedAdamBucket
from lightning_scale.optim.kernels.fused.division import quotient


@triton.jit
def adam_moments(g, m, v, beta1, rest1, beta2, rest2):  # type: ignore[no-untyped-def]
    """This step's m and v; rest = 1 - beta, taken in float64."""
    return m * beta1 + g * rest1, v * beta2 + (g * rest2) * g


@triton.jit
def adam_direction(m, v, corrections, eps, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """m̂ / (√v̂ + ε), with a tensor's `bias_corrections`."""
    if BIAS:
        first, second = tl.load(corrections), tl.load(corrections + 2)
        m = quotient(m, first, tl.load(corrections + 1))
        # No less than v; and v itself where it is infinite, which the quotient makes NaN.
        v = tl.maximum(quotient(v, second, tl.load(corrections + 3)), v)
    return tl.div_rn(m, tl.sqrt_rn(v) + eps)


def bias_corrections(bucket: CodedAdamBucket) -> Tensor:
    """[tensors, 4] float32: 1-β1^t of this step, computed in float64, its reciprocal, and the same of β2."""
    t = torch.stack(bucket.steps).to(bucket.device, torch.float64) + 1
    first, second = ((1 - beta**t).float() for beta in bucket.betas)
    return torch.stack([first, 1 / first, second, 1 / second], dim=1)
