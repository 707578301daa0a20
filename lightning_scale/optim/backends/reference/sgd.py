"""SGD with momentum (as torch's), one layer after the other."""

from __future__ import annotations

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.reference.chunks import chunks, count
from lightning_scale.optim.backends.reference.lars import apply, decayed, direction, shares


def sgd(bucket: Bucket, guard: Guard) -> None:
    """One step, in one pass. The first gradient goes into the momentum whole, later ones without the dampening."""
    group, share = bucket.group, shares(bucket)
    for chunk in chunks(bucket, guard):
        w = chunk.weight()
        step = decayed(chunk.gradient(), w, chunk.decay)
        if chunk.moments:
            m = chunk.moment("momentum_buffer")
            step, m = direction(step, m, group["momentum"], share[chunk.tensor], group["nesterov"])
            chunk.set_moment("momentum_buffer", m)
        chunk.set_weight(apply(w, step * bucket.lr))
    count(bucket, guard)
