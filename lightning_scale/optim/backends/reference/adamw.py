"""AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101; as torch's), one layer after the other."""

from __future__ import annotations

from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.reference.lamb import corrections, direction, update_moments
from lightning_scale.optim.backends.reference.pieces import count, pieces


def apply(w: Tensor, u: Tensor, lr: Tensor, decay: float) -> Tensor:
    """w · (1 - lr λ) - lr · u"""
    return w * (1 - lr * decay) - u * lr


def adamw(bucket: Bucket, guard: Guard) -> None:
    """One step, in one pass."""
    corrected, group = corrections(bucket), bucket.group
    for piece in pieces(bucket, guard):
        m, v = update_moments(piece.gradient(), piece.moment("exp_avg"), piece.moment("exp_avg_sq"), *group["betas"])
        w = piece.weight()
        u = direction(m, v, w, corrected[piece.tensor], group["eps"], decay=0.0)
        piece.set_weight(apply(w, u, bucket.lr, piece.decay))
        piece.set_moment("exp_avg", m)
        piece.set_moment("exp_avg_sq", v)
    count(bucket, guard)
