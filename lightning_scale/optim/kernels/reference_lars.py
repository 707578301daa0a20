"""LARS in plain multi-tensor torch operations: the twin that fused kernels are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import FirstPass, Guard, LarsBucket
from lightning_scale.optim.backends.norms import own_norms
from lightning_scale.optim.kernels.masking import (
    NOTHING_TO_ADD,
    NOTHING_TO_SUBTRACT,
    guarded_grads,
    unless_skipped,
    zero_if_skipped,
)
from lightning_scale.optim.kernels.scatter import add_weight_decay, apply, scale_layers


def lars(bucket: LarsBucket, guard: Guard) -> FirstPass:
    """One LARS step on a bucket, in place: You et al. 2017 (arXiv 1708.03888), or the 2019 form on the momentum.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    grads = guarded_grads(bucket.grads, guard)
    # The norm is that of the gradient before decay, or of the momentum after it.
    measured = _momentum(bucket, grads, guard) if bucket.momentum_norm else grads

    def second(ratio: Tensor) -> None:
        if bucket.momentum_norm:
            step = [m.clone() for m in measured]
            scale_layers(bucket.layout, step, ratio * bucket.lr)
        else:
            step = _gradient_step(bucket, measured, ratio, guard)
        apply(bucket, zero_if_skipped(step, guard, NOTHING_TO_SUBTRACT))

    return FirstPass(own_norms(bucket.layout, bucket.weights, measured), second)


def _momentum(bucket: LarsBucket, grads: list[Tensor], guard: Guard) -> list[Tensor]:
    """m = μ m + (1−μ)(g + λw), in place."""
    decayed = [g.clone() for g in grads]
    add_weight_decay(bucket, decayed)
    like = bucket.weights[0]
    torch._foreach_mul_(bucket.momentum_buffer, unless_skipped(bucket.momentum, 1.0, guard, like))
    torch._foreach_mul_(decayed, 1 - bucket.momentum)
    torch._foreach_add_(bucket.momentum_buffer, zero_if_skipped(decayed, guard, NOTHING_TO_ADD))
    return bucket.momentum_buffer


def _gradient_step(bucket: LarsBucket, grads: list[Tensor], ratio: Tensor, guard: Guard) -> list[Tensor]:
    """Update the momentum in place with d = ratio·(g + λw); return what is taken off the weights, in new tensors."""
    direction = [g.clone() for g in grads]
    add_weight_decay(bucket, direction)
    inside = ratio * bucket.lr if bucket.lr_in_momentum else ratio
    scale_layers(bucket.layout, direction, inside)
    if bucket.momentum_buffer:
        like = bucket.weights[0]
        direction = zero_if_skipped(direction, guard, NOTHING_TO_ADD)
        torch._foreach_mul_(bucket.momentum_buffer, unless_skipped(bucket.momentum, 1.0, guard, like))
        torch._foreach_add_(bucket.momentum_buffer, direction)
        if bucket.nesterov:
            torch._foreach_add_(direction, bucket.momentum_buffer, alpha=bucket.momentum)
        else:
            direction = [b.clone() for b in bucket.momentum_buffer]
    if not bucket.lr_in_momentum:
        torch._foreach_mul_(direction, bucket.lr)
    return direction
