"""LARS with an 8-bit momentum in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedLarsBucket, FirstPass, Guard
from lightning_scale.optim.kernels.eight_bit.batches import Batch, batches
from lightning_scale.optim.kernels.eight_bit.norms import piecewise_norms


def lars(bucket: CodedLarsBucket, guard: Guard) -> FirstPass:
    """One LARS step on a bucket, in place: You et al. 2017 (arXiv 1708.03888), or the 2019 form on the momentum.

    Two passes: the first only measures ‖w‖ and ‖g‖ (or ‖m‖), the second computes the same again, steps, and stores the
    momentum.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    every = batches(bucket)

    def measured(batch: Batch) -> list[Tensor]:
        # The norm is that of the gradient before decay, or of the momentum after it.
        return _averaged(bucket, batch, guard) if bucket.momentum_norm else batch.gradient(guard)

    def second(ratio: Tensor) -> None:
        outside = (ratio * bucket.lr if bucket.momentum_norm else bucket.lr.expand_as(ratio)).unbind()
        inside = (ratio * bucket.lr if bucket.lr_in_momentum else ratio).unbind()
        for batch in every:
            if bucket.momentum_norm:
                buffer = _averaged(bucket, batch, guard)
                step = list(torch._foreach_mul(buffer, [outside[layer] for layer in batch.layers]))
            else:
                step, buffer = _step_and_momentum(bucket, batch, [inside[layer] for layer in batch.layers], guard)
                if not bucket.lr_in_momentum:
                    step = list(torch._foreach_mul(step, [outside[layer] for layer in batch.layers]))
            batch.set_weight(list(torch._foreach_sub(batch.weight(), step)), guard)
            if bucket.momentum_buffer:
                batch.write(bucket.momentum_buffer, buffer, guard)

    return FirstPass(piecewise_norms(bucket, every, measured), second)


def _averaged(bucket: CodedLarsBucket, batch: Batch, guard: Guard) -> list[Tensor]:
    """m = μ m + (1-μ)(g + λw), in new tensors."""
    buffer = list(torch._foreach_mul(batch.read(bucket.momentum_buffer), bucket.momentum))
    torch._foreach_add_(buffer, torch._foreach_mul(batch.decayed_gradient(guard), 1 - bucket.momentum))
    return buffer


def _step_and_momentum(
    bucket: CodedLarsBucket, batch: Batch, inside: list[Tensor], guard: Guard
) -> tuple[list[Tensor], list[Tensor]]:
    """d = inside · (g + λw), buf = μ buf + d: what is taken off the weights, and the new buf."""
    direction = list(torch._foreach_mul(batch.decayed_gradient(guard), inside))
    if not bucket.momentum_buffer:
        return direction, direction
    buffer = list(torch._foreach_mul(batch.read(bucket.momentum_buffer), bucket.momentum))
    torch._foreach_add_(buffer, direction)
    if not bucket.nesterov:
        return buffer, buffer
    return list(torch._foreach_add(direction, torch._foreach_mul(buffer, bucket.momentum))), buffer
