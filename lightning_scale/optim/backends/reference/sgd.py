"""SGD with momentum (as torch's), one layer after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.reference.chunks import chunks, count
from lightning_scale.optim.backends.reference.lars import apply, decayed


def direction(d: Tensor, m: Tensor, momentum: float, share: Tensor, nesterov: bool) -> tuple[Tensor, Tensor]:
    """m = μ m + share · d, and what is taken off the weights: m, or with Nesterov's momentum d + μ m"""
    m = m * momentum + d * share
    return (d + m * momentum if nesterov else m), m


def sgd(bucket: Bucket, guard: Guard) -> None:
    """One step, in one pass. The first gradient goes into the momentum whole, later ones without the dampening."""
    group = bucket.group
    first, later = torch.ones_like(bucket.lr), torch.full_like(bucket.lr, 1 - group["dampening"])
    share = [torch.where(step == 0, first, later) for step in bucket.steps]
    for chunk in chunks(bucket, guard):
        w = chunk.weight()
        step = decayed(chunk.gradient(), w, chunk.decay)
        if chunk.moments:
            m = chunk.moment("momentum_buffer")
            step, m = direction(step, m, group["momentum"], share[chunk.tensor], group["nesterov"])
            chunk.set_moment("momentum_buffer", m)
        chunk.set_weight(apply(w, step * bucket.lr))
    count(bucket, guard)
