"""AdamW with 8-bit moments in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

from lightning_scale.optim.kernels.eight_bit.adam import corrections, count, direction, moments, set_moments
from lightning_scale.optim.kernels.eight_bit.pieces import pieces, set_weight, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedAdamBucket
from lightning_scale.optim.kernels.work import Guard


def adamw(bucket: CodedAdamBucket, guard: Guard) -> None:
    """One AdamW step (Loshchilov & Hutter 2017, arXiv 1711.05101; as torch's) on a bucket, in place, in one pass.

    w ← w·(1 - lr·λ) - lr · m̂/(√v̂ + ε)

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    corrected = corrections(bucket)
    kept = [1 - bucket.lr * decay for decay in bucket.weight_decay]
    for piece in pieces(bucket):
        m, v = moments(bucket, piece, guard)
        step = direction(bucket, piece, corrected, m, v).mul_(bucket.lr)
        set_weight(bucket, piece, (weight(bucket, piece) * kept[piece.layer]).sub_(step), guard)
        set_moments(bucket, piece, guard, m, v)
    count(bucket.steps, guard)
