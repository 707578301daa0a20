"""SGD with an 8-bit momentum on CPUs: one pass, LARS' with ratios of 1."""

from __future__ import annotations

import numpy as np

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.cpu.lars import move_all, nesterov, shares
from lightning_scale.optim.backends.cpu.launch import Launch


def sgd(bucket: Bucket, guard: Guard) -> None:
    """One SGD step on a bucket, in place."""
    group = bucket.group
    launch = Launch(bucket, guard, ("step", "momentum_buffer") if group["momentum"] else ())
    own, buffered = nesterov(bucket)
    inside = np.ones(len(bucket.layout.layers), np.float32)
    move_all(launch, (group["momentum"], own, buffered, bucket.rate), inside, shares(bucket, launch))
