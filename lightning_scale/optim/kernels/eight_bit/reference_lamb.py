"""LAMB with 8-bit moments in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.adam import (
    Corrections,
    corrections,
    count,
    direction,
    moments,
    set_moments,
)
from lightning_scale.optim.kernels.eight_bit.norms import piecewise_norms
from lightning_scale.optim.kernels.eight_bit.pieces import Piece, pieces, set_weight, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedLambBucket
from lightning_scale.optim.kernels.work import FirstPass, Guard


def lamb(bucket: CodedLambBucket, guard: Guard) -> FirstPass:
    """One LAMB step (You et al. 2019, arXiv 1904.00962, algorithm 2) on a bucket, in place.

    Two passes over gradients, moments and weights: the first only measures ‖w‖ and ‖u‖, the second computes the same u
    again, steps, and stores the moments.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    corrected = corrections(bucket)

    def measured(piece: Piece) -> Tensor:
        return _update(bucket, piece, corrected, *moments(bucket, piece, guard))

    def second(ratio: Tensor) -> None:
        scales = (ratio * bucket.lr).unbind()
        for piece in pieces(bucket):
            m, v = moments(bucket, piece, guard)
            step = _update(bucket, piece, corrected, m, v).mul_(scales[piece.layer])
            set_weight(bucket, piece, weight(bucket, piece) - step, guard)
            set_moments(bucket, piece, guard, m, v)
        count(bucket.steps, guard)

    return FirstPass(piecewise_norms(bucket, measured), second)


def _update(bucket: CodedLambBucket, piece: Piece, corrected: Corrections | None, m: Tensor, v: Tensor) -> Tensor:
    """u = m̂/(√v̂ + ε) + λw, in a new tensor."""
    update = direction(bucket, piece, corrected, m, v)
    decay = bucket.weight_decay[piece.layer]
    return update.add_(weight(bucket, piece) * decay) if decay else update
