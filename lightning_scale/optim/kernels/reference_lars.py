"""LARS in plain multi-tensor torch operations: the twin that fused kernels are held to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_scale.optim.kernels.masking import (
    NOTHING_TO_ADD,
    NOTHING_TO_SUBTRACT,
    guarded_grads,
    unless_skipped,
    zero_if_skipped,
)
from lightning_scale.optim.kernels.norms import layer_norms, trust_ratios
from lightning_scale.optim.kernels.scatter import add_weight_decay, apply, per_segment
from lightning_scale.optim.kernels.work import Guard, LarsBucket, LayerNorms


def lars(buckets: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place: You et al. 2017 (arXiv 1708.03888), or the 2019 form on the momentum.

    Args:
        buckets: What to update; all with the same ``momentum_norm``.
        guard: The clip and the non-finite test of this step.

    Returns:
        Norms and ratios of each bucket's layers.
    """
    grads = [guarded_grads(bucket.grads, guard) for bucket in buckets]
    # The norm is that of the gradient before decay, or of the momentum after it.
    measured = [
        _momentum(bucket, g, guard) if bucket.momentum_norm else g for bucket, g in zip(buckets, grads, strict=True)
    ]
    norms = layer_norms(
        [(b.layout, b.weights) for b in buckets] + [(b.layout, m) for b, m in zip(buckets, measured, strict=True)]
    )
    results = []
    for bucket, value, w, n in zip(buckets, measured, norms[: len(buckets)], norms[len(buckets) :], strict=True):
        ratio = ratios(bucket, w, n)
        if bucket.momentum_norm:
            step = [m.clone() for m in value]
            torch._foreach_mul_(bucket.layout.views(step), per_segment(bucket.layout, ratio * bucket.lr))
        else:
            step = _gradient_step(bucket, value, ratio, guard)
        apply(bucket, zero_if_skipped(step, guard, NOTHING_TO_SUBTRACT))
        results.append(LayerNorms(w, n, ratio))
    return results


def ratios(bucket: LarsBucket, w: Tensor, n: Tensor) -> Tensor:
    """Each layer's ratio from ‖w‖ and the other norm, whole layers', 1-D."""
    if bucket.momentum_norm:
        return trust_ratios(w, n, bucket.trust, n, bucket.trust_coefficient)
    decay = torch.tensor(bucket.weight_decay, dtype=w.dtype, device=w.device)
    return trust_ratios(w, n, bucket.trust, n + decay * w + bucket.eps, bucket.trust_coefficient)


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
    torch._foreach_mul_(bucket.layout.views(direction), per_segment(bucket.layout, inside))
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
