"""AdamW with 8-bit moments in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedAdamBucket, Guard
from lightning_scale.optim.kernels.eight_bit.adam import corrections, count, direction, moments, set_moments
from lightning_scale.optim.kernels.eight_bit.batches import Batch, batches


def adamw(bucket: CodedAdamBucket, guard: Guard) -> None:
    """One AdamW step (Loshchilov & Hutter 2017, arXiv 1711.05101; as torch's) on a bucket, in place, in one pass.

    w ← w·(1 - lr·λ) - lr · m̂/(√v̂ + ε)

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    corrected = corrections(bucket)
    kept = [1 - bucket.lr * decay for decay in bucket.weight_decay]
    for batch in batches(bucket):
        m, v = moments(bucket, batch, guard)
        batch.set_weight(_stepped(bucket, batch, kept, direction(bucket, batch, corrected, m, v)), guard)
        set_moments(bucket, batch, guard, m, v)
    count(bucket.steps, guard)


def _stepped(bucket: CodedAdamBucket, batch: Batch, kept: list[Tensor], step: list[Tensor]) -> list[Tensor]:
    """w·(1 - lr·λ) - lr·step, in new tensors; ``step`` is used up."""
    torch._foreach_mul_(step, bucket.lr)
    weights = list(torch._foreach_mul(batch.weight(), [kept[layer] for layer in batch.layers]))
    torch._foreach_sub_(weights, step)
    return weights
