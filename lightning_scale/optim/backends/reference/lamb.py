"""LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2), one layer after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard
from lightning_scale.optim.backends.device import bias_correction
from lightning_scale.optim.backends.reference.chunks import Chunk, chunks, count, norms


def update_moments(g: Tensor, m: Tensor, v: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²"""
    return m * beta1 + g * (1 - beta1), v * beta2 + (g * (1 - beta2)) * g


def direction(m: Tensor, v: Tensor, w: Tensor, corrections: tuple[Tensor, Tensor], eps: float, decay: float) -> Tensor:
    """u = m̂ / (√v̂ + ε) + λ w, with m̂ = m / (1-β1^t) and v̂ = v / (1-β2^t)"""
    u = (m / corrections[0]) / ((v / corrections[1]).sqrt() + eps)
    return u + w * decay if decay else u


def apply(w: Tensor, u: Tensor, rate: Tensor) -> Tensor:
    """w - rate · u"""
    return w - u * rate


def corrections(bucket: Bucket) -> list[tuple[Tensor, Tensor]]:
    """1-β1^t and 1-β2^t of this step for each local tensor, 0-d, computed in float64."""
    one = torch.ones((), dtype=bucket.compute, device=bucket.device)
    if not bucket.group.get("bias_correction", True) or not bucket.steps:
        return [(one, one)] * len(bucket.params)
    t = torch.stack(bucket.steps).to(bucket.device) + 1
    first, second = (bias_correction(t, beta).to(bucket.compute).unbind() for beta in bucket.group["betas"])
    return list(zip(first, second, strict=True))


def lamb(bucket: Bucket, guard: Guard) -> FirstPass:
    """The first pass of a step only measures ‖w‖ and ‖u‖; the second computes the same u again, and takes the step."""
    corrected = corrections(bucket)

    def updated(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        group = bucket.group
        m, v = update_moments(chunk.gradient(), chunk.moment("exp_avg"), chunk.moment("exp_avg_sq"), *group["betas"])
        return m, v, direction(m, v, chunk.weight(), corrected[chunk.tensor], group["eps"], chunk.decay)

    def second(ratio: Tensor) -> None:
        rates = (ratio * bucket.lr).unbind()
        for chunk in chunks(bucket, guard):
            m, v, u = updated(chunk)
            chunk.set_weight(apply(chunk.weight(), u, rates[chunk.layer]))
            chunk.set_moment("exp_avg", m)
            chunk.set_moment("exp_avg_sq", v)
        count(bucket, guard)

    return FirstPass(norms(bucket, guard, lambda chunk: updated(chunk)[2]), second)
