"""LAMB in plain multi-tensor torch operations: the twin that fused kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import FirstPass, Guard, LambBucket
from lightning_scale.optim.backends.device import bias_correction
from lightning_scale.optim.backends.norms import own_norms
from lightning_scale.optim.kernels.masking import (
    NOTHING_TO_SUBTRACT,
    guarded_grads,
    unless_skipped,
    zero_if_skipped,
)
from lightning_scale.optim.kernels.scatter import add_weight_decay, apply, scale_layers


def lamb(bucket: LambBucket, guard: Guard) -> FirstPass:
    """One LAMB step (You et al. 2019, arXiv 1904.00962, algorithm 2) on a bucket, in place: moments first, then weights.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    update = _moments_and_update(bucket, guard)

    def second(ratio: Tensor) -> None:
        scale_layers(bucket.layout, update, ratio * bucket.lr)
        apply(bucket, update)

    return FirstPass(own_norms(bucket.layout, bucket.weights, update), second)


def _moments_and_update(bucket: LambBucket, guard: Guard) -> list[Tensor]:
    """Update the moments in place; return u = m̂/(√v̂ + ε) + λw in new tensors."""
    grads = guarded_grads(bucket.grads, guard)
    beta1, beta2 = bucket.betas
    like = bucket.weights[0]
    torch._foreach_mul_(bucket.exp_avg, unless_skipped(beta1, 1.0, guard, like))
    torch._foreach_add_(bucket.exp_avg, grads, alpha=1 - beta1)
    torch._foreach_mul_(bucket.exp_avg_sq, unless_skipped(beta2, 1.0, guard, like))
    torch._foreach_addcmul_(bucket.exp_avg_sq, grads, grads, 1 - beta2)
    torch._foreach_add_(bucket.steps, unless_skipped(1.0, 0.0, guard, bucket.steps[0]))

    if bucket.bias_correction:
        # A first step that is skipped has counted none: any finite correction serves, its result is not used.
        t = torch.stack(bucket.steps).to(like.device).clamp(min=1)
        correction1, correction2 = (bias_correction(t, beta).to(like.dtype).unbind() for beta in bucket.betas)
        denominator = list(torch._foreach_div(bucket.exp_avg_sq, correction2))
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, bucket.eps)
        update = list(torch._foreach_div(bucket.exp_avg, correction1))
    else:
        denominator = list(torch._foreach_sqrt(bucket.exp_avg_sq))
        torch._foreach_add_(denominator, bucket.eps)
        update = [m.clone() for m in bucket.exp_avg]
    torch._foreach_div_(update, denominator)
    add_weight_decay(bucket, update)
    return zero_if_skipped(update, guard, NOTHING_TO_SUBTRACT)  # with ε = 0, moments that are still zero make it 0/0
