"""SGD with an 8-bit momentum in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch

from lightning_scale.optim.kernels.eight_bit.adam import count
from lightning_scale.optim.kernels.eight_bit.pieces import finite_on, gradient, pieces, set_weight, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedSgdBucket
from lightning_scale.optim.kernels.work import Guard


def sgd(bucket: CodedSgdBucket, guard: Guard) -> None:
    """One SGD step (as torch's) on a bucket, in place, in one pass.

    d = g + λw;  buf = μ buf + (1 - dampening) d, and d at first;  w ← w - lr · buf  (``nesterov``: lr · (d + μ buf))

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
    """
    first, later = torch.ones_like(bucket.lr), torch.full_like(bucket.lr, 1 - bucket.dampening)
    share = [torch.where(step == 0, first, later) for step in bucket.steps]
    for piece in pieces(bucket):
        step = gradient(bucket, piece, guard)
        w = weight(bucket, piece)
        decay = bucket.weight_decay[piece.layer]
        if decay:
            step = step + w * decay
        if bucket.momentum_buffer:
            moment = bucket.momentum_buffer[piece.segment].part(piece.offset, piece.length)
            buffer = moment.read() * bucket.momentum
            buffer += step * share[piece.tensor]
            step = step + buffer * bucket.momentum if bucket.nesterov else buffer
            moment.write(buffer, finite_on(guard, bucket.device))
        set_weight(bucket, piece, w - step * bucket.lr, guard)
    count(bucket.steps, guard)
