"""LAMB with 8-bit moments in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedLambBucket, FirstPass, Guard
from lightning_scale.optim.kernels.eight_bit.adam import (
    Corrections,
    corrections,
    count,
    direction,
    moments,
    set_moments,
)
from lightning_scale.optim.kernels.eight_bit.batches import Batch, batches
from lightning_scale.optim.kernels.eight_bit.norms import piecewise_norms


def lamb(bucket: CodedLambBucket, guard: Guard) -> FirstPass:
    """One LAMB step (You et al. 2019, arXiv 1904.00962, algorithm 2) on a bucket, in place.

    Two passes over gradients, moments and weights: the first only measures ‖w‖ and ‖u‖, the second computes the same u
    again, steps, and stores the moments.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    corrected, every = corrections(bucket), batches(bucket)

    def measured(batch: Batch) -> list[Tensor]:
        return _update(bucket, batch, corrected, *moments(bucket, batch, guard))

    def second(ratio: Tensor) -> None:
        scales = (ratio * bucket.lr).unbind()
        for batch in every:
            m, v = moments(bucket, batch, guard)
            step = _update(bucket, batch, corrected, m, v)
            torch._foreach_mul_(step, [scales[layer] for layer in batch.layers])
            batch.set_weight(list(torch._foreach_sub(batch.weight(), step)), guard)
            set_moments(bucket, batch, guard, m, v)
        count(bucket.steps, guard)

    return FirstPass(piecewise_norms(bucket, every, measured), second)


def _update(
    bucket: CodedLambBucket, batch: Batch, corrected: Corrections | None, m: list[Tensor], v: list[Tensor]
) -> list[Tensor]:
    """u = m̂/(√v̂ + ε) + λw, in new tensors."""
    update = direction(bucket, batch, corrected, m, v)
    batch.add_weight_decay(update)
    return update
