"""LAMB with 8-bit moments in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

from collections.abc import Sequence

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
from lightning_scale.optim.kernels.norms import trust_ratios
from lightning_scale.optim.kernels.work import Guard, LayerNorms


def lamb(buckets: Sequence[CodedLambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step (You et al. 2019, arXiv 1904.00962, algorithm 2) on every bucket, in place.

    Two passes over gradients, moments and weights: the first only measures ‖w‖ and ‖u‖, the second computes the same u
    again, steps, and stores the moments.

    Args:
        buckets: What to update.
        guard: The clip and the non-finite test of this step.

    Returns:
        Norms and ratios of each bucket's layers.
    """
    corrected = {id(bucket): corrections(bucket) for bucket in buckets}

    def measured(bucket: CodedLambBucket, piece: Piece) -> Tensor:
        return _update(bucket, piece, corrected[id(bucket)], *moments(bucket, piece, guard))

    results = []
    for bucket, (w, u) in zip(buckets, piecewise_norms(buckets, measured), strict=True):
        ratio = trust_ratios(w, u, bucket.trust, u)
        scales = (ratio * bucket.lr).unbind()
        for piece in pieces(bucket):
            m, v = moments(bucket, piece, guard)
            step = _update(bucket, piece, corrected[id(bucket)], m, v).mul_(scales[piece.layer])
            set_weight(bucket, piece, weight(bucket, piece) - step, guard)
            set_moments(bucket, piece, guard, m, v)
        count(bucket.steps, guard)
        results.append(LayerNorms(w, u, ratio))
    return results


def _update(bucket: CodedLambBucket, piece: Piece, corrected: Corrections | None, m: Tensor, v: Tensor) -> Tensor:
    """u = m̂/(√v̂ + ε) + λw, in a new tensor."""
    update = direction(bucket, piece, corrected, m, v)
    decay = bucket.weight_decay[piece.layer]
    return update.add_(weight(bucket, piece) * decay) if decay else update
