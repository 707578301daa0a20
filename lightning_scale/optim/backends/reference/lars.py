"""LARS, one layer after the other: You et al. 2017 (arXiv 1708.03888), its form on the norm of g + λ w, or the 2019 form on
the momentum (arXiv 1904.00962, algorithm 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard
from lightning_scale.optim.backends.reference.chunks import Chunk, chunks, count, norms


def decayed(g: Tensor, w: Tensor, decay: float) -> Tensor:
    """g + λ w"""
    return g + w * decay if decay else g


def update_momentum(d: Tensor, m: Tensor, momentum: float) -> Tensor:
    """m = μ m + (1-μ) d, of d = g + λ w: the form of 2019"""
    return m * momentum + d * (1 - momentum)


def direction(d: Tensor, m: Tensor, momentum: float, share: Tensor, nesterov: bool) -> tuple[Tensor, Tensor]:
    """m = μ m + share · d, and what is taken off the weights: m, or with Nesterov's momentum d + μ m"""
    m = m * momentum + d * share
    return (d + m * momentum if nesterov else m), m


def shares(bucket: Bucket) -> list[Tensor]:
    """How much of d each local tensor's momentum takes: all of the first, and of later ones what dampening leaves; 0-d."""
    first, later = torch.ones_like(bucket.lr), torch.full_like(bucket.lr, 1 - bucket.group["dampening"])
    if not bucket.steps:
        return [first] * len(bucket.params)
    return [torch.where(step.to(first.device) == 0, first, later) for step in bucket.steps]


def apply(w: Tensor, step: Tensor) -> Tensor:
    """w - step"""
    return w - step


def lars(bucket: Bucket, guard: Guard) -> FirstPass:
    """The first pass of a step only measures ‖w‖ and ‖g‖, ‖g + λ w‖ or ‖m‖; the second computes the same again, and takes the
    step.
    """
    return _on_momentum(bucket, guard) if bucket.group["trust_norm"] == "momentum" else _on_gradient(bucket, guard)


def _on_gradient(bucket: Bucket, guard: Guard) -> FirstPass:
    group = bucket.group

    def second(ratio: Tensor) -> None:
        inside, share = (ratio * bucket.lr if group["lr_in_momentum"] else ratio).unbind(), shares(bucket)
        for chunk in chunks(bucket, guard):
            w = chunk.weight()
            step = decayed(chunk.gradient(), w, chunk.decay) * inside[chunk.layer]
            if chunk.moments:
                m = chunk.moment("momentum_buffer")
                step, m = direction(step, m, group["momentum"], share[chunk.tensor], group["nesterov"])
                chunk.set_moment("momentum_buffer", m)
            chunk.set_weight(apply(w, step if group["lr_in_momentum"] else step * bucket.lr))
        count(bucket, guard)

    def measured(chunk: Chunk) -> Tensor:
        g = chunk.gradient()
        return decayed(g, chunk.weight(), chunk.decay) if group["trust_norm"] == "decayed_gradient" else g

    return FirstPass(norms(bucket, guard, measured), second)


def _on_momentum(bucket: Bucket, guard: Guard) -> FirstPass:
    def updated(chunk: Chunk) -> Tensor:
        d = decayed(chunk.gradient(), chunk.weight(), chunk.decay)
        return update_momentum(d, chunk.moment("momentum_buffer"), bucket.group["momentum"])

    def second(ratio: Tensor) -> None:
        rates = (ratio * bucket.lr).unbind()
        for chunk in chunks(bucket, guard):
            m = updated(chunk)
            chunk.set_weight(apply(chunk.weight(), m * rates[chunk.layer]))
            chunk.set_moment("momentum_buffer", m)
        count(bucket, guard)

    return FirstPass(norms(bucket, guard, updated), second)
