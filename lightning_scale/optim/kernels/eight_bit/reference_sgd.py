"""SGD with an 8-bit momentum in plain torch operations: the twin that fused kernels are held to, code for code."""

from __future__ import annotations

import torch

from lightning_scale.optim.backends.bucket import CodedSgdBucket, Guard
from lightning_scale.optim.kernels.eight_bit.adam import count
from lightning_scale.optim.kernels.eight_bit.batches import batches


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
        step = batch.decayed_gradient(guard)
        if bucket.momentum_buffer:
            buffer = list(torch._foreach_mul(batch.read(bucket.momentum_buffer), bucket.momentum))
            torch._foreach_add_(buffer, torch._foreach_mul(step, [share[piece.tensor] for piece in batch.pieces]))
            step = (
                list(torch._foreach_add(step, torch._foreach_mul(buffer, bucket.momentum)))
                if bucket.nesterov
                else buffer
            )
            batch.write(bucket.momentum_buffer, buffer, guard)
        step = list(torch._foreach_mul(step, bucket.lr))
        batch.set_weight(list(torch._foreach_sub(batch.weight(), step)), guard)
    count(bucket.steps, guard)
