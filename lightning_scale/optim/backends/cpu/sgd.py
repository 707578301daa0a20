"""SGD with an 8-bit momentum on CPUs: one pass, LARS' with ratios of 1."""

from __future__ import annotations

import numpy as np

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.cpu.lars import move_all, nesterov
from lightning_scale.optim.backends.cpu.launch import Launch


def sgd(bucket: Bucket, guard: Guard) -> None:
    """One SGD step on a bucket, in place."""
    group = bucket.group
    launch = Launch(bucket, guard, ("step", "momentum_buffer") if group["momentum"] else ())
    share = np.ones(len(bucket.params), np.float32)
    if bucket.remembers:  # the first gradient goes into the momentum whole
        share = np.where(launch.count_steps() == 1, np.float32(1), np.float32(1 - group["dampening"]))
    own, buffered = nesterov(bucket)
    inside = np.ones(len(bucket.layout.layers), np.float32)
    move_all(launch, (group["momentum"], own, buffered, bucket.rate), inside, share)
