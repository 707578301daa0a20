"""LARS with an 8-bit momentum in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.norms import piecewise_norms
from lightning_scale.optim.kernels.eight_bit.pieces import Piece, finite_on, gradient, pieces, set_weight, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedLarsBucket
from lightning_scale.optim.kernels.norms import trust_ratios
from lightning_scale.optim.kernels.work import Guard, LayerNorms


def lars(buckets: Sequence[CodedLarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place: You et al. 2017 (arXiv 1708.03888), or the 2019 form on the momentum.

    Two passes: the first only measures ‖w‖ and ‖g‖ (or ‖m‖), the second computes the same again, steps, and stores the
    momentum.

    Args:
        buckets: What to update.
        guard: The clip and the non-finite test of this step.

    Returns:
        Norms and ratios of each bucket's layers.
    """

    def measured(bucket: CodedLarsBucket, piece: Piece) -> Tensor:
        # The norm is that of the gradient before decay, or of the momentum after it.
        return (_averaged if bucket.momentum_norm else gradient)(bucket, piece, guard)

    results = []
    for bucket, (w, n) in zip(buckets, piecewise_norms(buckets, measured), strict=True):
        ratio = ratios(bucket, w, n)
        outside = ratio * bucket.lr if bucket.momentum_norm else bucket.lr.expand_as(ratio)
        inside = ratio * bucket.lr if bucket.lr_in_momentum else ratio
        for piece in pieces(bucket):
            if bucket.momentum_norm:
                buffer = _averaged(bucket, piece, guard)
                step = buffer * outside[piece.layer]
            else:
                step, buffer = _step_and_momentum(bucket, piece, inside[piece.layer], guard)
                if not bucket.lr_in_momentum:
                    step = step * outside[piece.layer]
            set_weight(bucket, piece, weight(bucket, piece) - step, guard)
            if bucket.momentum_buffer:
                moment = bucket.momentum_buffer[piece.segment].part(piece.offset, piece.length)
                moment.write(buffer, finite_on(guard, bucket.device))
        results.append(LayerNorms(w, n, ratio))
    return results


def ratios(bucket: CodedLarsBucket, w: Tensor, n: Tensor) -> Tensor:
    """Each layer's ratio from ‖w‖ and the other norm, whole layers', 1-D."""
    decay = torch.tensor(bucket.weight_decay, dtype=w.dtype, device=w.device)
    denominator = n if bucket.momentum_norm else n + decay * w + bucket.eps
    return trust_ratios(w, n, bucket.trust, denominator, bucket.trust_coefficient)


def _averaged(bucket: CodedLarsBucket, piece: Piece, guard: Guard) -> Tensor:
    """m = μ m + (1-μ)(g + λw), in a new tensor."""
    buffer = bucket.momentum_buffer[piece.segment].part(piece.offset, piece.length).read() * bucket.momentum
    buffer += _decayed(bucket, piece, guard) * (1 - bucket.momentum)
    return buffer


def _step_and_momentum(bucket: CodedLarsBucket, piece: Piece, inside: Tensor, guard: Guard) -> tuple[Tensor, Tensor]:
    """d = inside · (g + λw), buf = μ buf + d: what is taken off the weights, and the new buf."""
    direction = _decayed(bucket, piece, guard) * inside
    if not bucket.momentum_buffer:
        return direction, direction
    buffer = bucket.momentum_buffer[piece.segment].part(piece.offset, piece.length).read() * bucket.momentum
    buffer += direction
    return (direction + buffer * bucket.momentum if bucket.nesterov else buffer), buffer


def _decayed(bucket: CodedLarsBucket, piece: Piece, guard: Guard) -> Tensor:
    """g + λw; the gradient itself, read only, without decay."""
    grad = gradient(bucket, piece, guard)
    decay = bucket.weight_decay[piece.layer]
    return grad + weight(bucket, piece) * decay if decay else grad
