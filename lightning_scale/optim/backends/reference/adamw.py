"""AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101; as torch's), one layer after the other."""

from __future__ import annotations

from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.reference.chunks import chunks, count
from lightning_scale.optim.backends.reference.lamb import corrections, direction, update_moments


def apply(w: Tensor, u: Tensor, lr: Tensor, decay: float) -> Tensor:
    """w · (1 - lr λ) - lr · u"""
    return w * (1 - lr * decay) - u * lr


def adamw(bucket: Bucket, guard: Guard) -> None:
    """One step, in one pass."""
    corrected, group = corrections(bucket), bucket.group
    for chunk in chunks(bucket, guard):
        m, v = update_moments(chunk.gradient(), chunk.moment("exp_avg"), chunk.moment("exp_avg_sq"), *group["betas"])
        w = chunk.weight()
        u = direction(m, v, w, corrected[chunk.tensor], group["eps"], decay=0.0)
        chunk.set_weight(apply(w, u, bucket.lr, chunk.decay))
        chunk.set_moment("exp_avg", m)
        chunk.set_moment("exp_avg_sq", v)
    count(bucket, guard)
