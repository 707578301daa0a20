"""Adam's moments and direction for one piece, as LAMB and AdamW share them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import store
from lightning_scale.optim.kernels.eight_bit.pieces import Piece, finite_on, gradient
from lightning_scale.optim.kernels.eight_bit.work import CodedAdamBucket
from lightning_scale.optim.kernels.work import Guard

Corrections = list[tuple[Tensor, Tensor]]


def corrections(bucket: CodedAdamBucket) -> Corrections | None:
    """1-β1^t and 1-β2^t of this step for each local tensor, 0-d in compute dtype, computed in float64."""
    if not bucket.bias_correction or not bucket.steps:
        return None
    t = torch.stack(bucket.steps).to(bucket.device, torch.float64) + 1
    first, second = ((1 - beta**t).to(bucket.compute).unbind() for beta in bucket.betas)
    return list(zip(first, second, strict=True))


def moments(bucket: CodedAdamBucket, piece: Piece, guard: Guard) -> tuple[Tensor, Tensor]:
    """This step's m and v of one piece, before any rounding to 8 bits, in new tensors; each operation rounds once."""
    g = gradient(bucket, piece, guard)
    beta1, beta2 = bucket.betas
    m = bucket.exp_avg[piece.segment].part(piece.offset, piece.length).read() * beta1
    m += g * (1 - beta1)
    v = bucket.exp_avg_sq[piece.segment].part(piece.offset, piece.length).read() * beta2
    v += (g * (1 - beta2)).mul_(g)
    return m, v


def direction(bucket: CodedAdamBucket, piece: Piece, corrections: Corrections | None, m: Tensor, v: Tensor) -> Tensor:
    """m̂ / (√v̂ + ε), in a new tensor."""
    if corrections is None:
        return m / v.sqrt().add_(bucket.eps)
    first, second = corrections[piece.tensor]
    return (m / first).div_((v / second).sqrt_().add_(bucket.eps))


def set_moments(bucket: CodedAdamBucket, piece: Piece, guard: Guard, m: Tensor, v: Tensor) -> None:
    """Store a piece's m and v."""
    finite = finite_on(guard, bucket.device)
    bucket.exp_avg[piece.segment].part(piece.offset, piece.length).write(m, finite)
    bucket.exp_avg_sq[piece.segment].part(piece.offset, piece.length).write(v, finite)


def count(steps: list[Tensor], guard: Guard) -> None:
    """One step more for each local tensor."""
    for step in steps:
        store(step, step + 1, finite_on(guard, step.device))
