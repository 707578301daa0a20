"""SGD with an 8-bit momentum in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch

from lightning_scale.optim.kernels.eight_bit.adam import count
from lightning_scale.optim.kernels.eight_bit.pieces import (
    add_weight_decay,
    batches,
    gradient,
    read,
    set_weight,
    weight,
    write,
)
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
    for batch in batches(bucket):
        step = gradient(bucket, batch, guard)
        if any(bucket.weight_decay[piece.layer] for piece in batch):
            step = [each.clone() for each in step]
            add_weight_decay(bucket, batch, step)
        if bucket.momentum_buffer:
            buffer = list(torch._foreach_mul(read(bucket.momentum_buffer, batch), bucket.momentum))
            torch._foreach_add_(buffer, torch._foreach_mul(step, [share[piece.tensor] for piece in batch]))
            ahead = bucket.nesterov
            step = list(torch._foreach_add(step, torch._foreach_mul(buffer, bucket.momentum))) if ahead else buffer
            write(bucket, bucket.momentum_buffer, batch, buffer, guard)
        step = list(torch._foreach_mul(step, bucket.lr))
        set_weight(bucket, batch, list(torch._foreach_sub(weight(bucket, batch), step)), guard)
    count(bucket.steps, guard)
