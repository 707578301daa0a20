"""Adam's moments and direction, as LAMB and AdamW share them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedAdamBucket, Guard
from lightning_scale.optim.backends.device import bias_correction
from lightning_scale.optim.kernels.eight_bit.batches import Batch
from lightning_scale.optim.kernels.masking import unless_skipped

Corrections = list[tuple[Tensor, Tensor]]


def corrections(bucket: CodedAdamBucket) -> Corrections | None:
    """1-β1^t and 1-β2^t of this step for each local tensor, 0-d in compute dtype, computed in float64."""
    if not bucket.bias_correction or not bucket.steps:
        return None
    t = torch.stack(bucket.steps).to(bucket.device) + 1
    first, second = (bias_correction(t, beta).to(bucket.compute).unbind() for beta in bucket.betas)
    return list(zip(first, second, strict=True))


def moments(bucket: CodedAdamBucket, batch: Batch, guard: Guard) -> tuple[list[Tensor], list[Tensor]]:
    """This step's m and v of some pieces, before any rounding to 8 bits, in new tensors; each operation rounds once."""
    g = batch.gradient(guard)
    beta1, beta2 = bucket.betas
    m = list(torch._foreach_mul(batch.read(bucket.exp_avg), beta1))
    torch._foreach_add_(m, torch._foreach_mul(g, 1 - beta1))
    squares = list(torch._foreach_mul(g, 1 - beta2))
    torch._foreach_mul_(squares, g)
    v = list(torch._foreach_mul(batch.read(bucket.exp_avg_sq), beta2))
    torch._foreach_add_(v, squares)
    return m, v


def direction(
    bucket: CodedAdamBucket, batch: Batch, corrections: Corrections | None, m: list[Tensor], v: list[Tensor]
) -> list[Tensor]:
    """m̂ / (√v̂ + ε), in new tensors."""
    if corrections is None:
        denominator = list(torch._foreach_sqrt(v))
        torch._foreach_add_(denominator, bucket.eps)
        return list(torch._foreach_div(m, denominator))
    first, second = zip(*(corrections[piece.tensor] for piece in batch.pieces), strict=True)
    denominator = list(torch._foreach_div(v, second))
    torch._foreach_sqrt_(denominator)
    torch._foreach_add_(denominator, bucket.eps)
    update = list(torch._foreach_div(m, first))
    torch._foreach_div_(update, denominator)
    return update


def set_moments(bucket: CodedAdamBucket, batch: Batch, guard: Guard, m: list[Tensor], v: list[Tensor]) -> None:
    """Store the pieces' m and v."""
    batch.write(bucket.exp_avg, m, guard)
    batch.write(bucket.exp_avg_sq, v, guard)


def count(steps: list[Tensor], guard: Guard) -> None:
    """One step more for each local tensor."""
    if steps:
        torch._foreach_add_(steps, unless_skipped(1.0, 0.0, guard, steps[0]))
