"""From the norms of a layer to its trust ratio, for every implementation: on one number a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedLambBucket, CodedLarsBucket, LambBucket, LarsBucket, TrustRatio
from lightning_scale.optim.backends.device import constant

Array = NDArray[Any]


def lamb_ratio(bucket: LambBucket | CodedLambBucket, weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """LAMB's: φ(‖w‖) / ‖u‖ of each layer, 1-D."""
    return _trust_ratio(weight_norm, update_norm, bucket.trust, update_norm)


def lars_ratio(bucket: LarsBucket | CodedLarsBucket, weight_norm: Tensor, other_norm: Tensor) -> Tensor:
    """LARS': η φ(‖w‖) / (‖g‖ + λ ‖w‖ + ε), or η φ(‖w‖) / ‖m‖ of each layer, 1-D."""
    denominator = other_norm
    if not bucket.momentum_norm:
        decay = constant(bucket.layout, "decays", bucket.weight_decay, weight_norm.dtype, weight_norm.device)
        denominator = other_norm + decay * weight_norm + bucket.eps
    return _trust_ratio(weight_norm, other_norm, bucket.trust, denominator, bucket.trust_coefficient)


def _trust_ratio(
    weight_norm: Tensor, update_norm: Tensor, rule: TrustRatio, denominator: Tensor, coefficient: float = 1.0
) -> Tensor:
    """``coefficient · φ(‖w‖) / denominator``, clipped; 1 where a norm is 0 or the layer is excluded.

    Args:
        weight_norm: ‖w‖ of each layer, 1-D.
        update_norm: The other norm of each layer, only to see where it is 0.
        rule: Which layers adapt, and the clips.
        denominator: What φ(‖w‖) is divided by.
        coefficient: A constant factor.
    """
    if weight_norm.device.type == "cpu":
        # The same operations by numpy, which takes a microsecond for each where torch takes many, between two passes over
        # large tensors up to a hundred.
        w, n, adapt, below = (t.numpy() for t in (weight_norm, update_norm, rule.adapt, denominator))
        return torch.from_numpy(ratio_by_numpy(w, n, adapt, below, rule, coefficient))
    phi = weight_norm.clamp(*rule.weight_norm_clip) if rule.weight_norm_clip else weight_norm
    value = coefficient * phi / denominator
    if rule.clip:
        value = value.clamp(*rule.clip)
    adapts = rule.adapt & (weight_norm > 0) & (update_norm > 0)
    return torch.where(adapts, value, torch.ones_like(value))


def ratio_by_numpy(
    weight_norm: Array, update_norm: Array, adapt: Array, denominator: Array, rule: TrustRatio, coefficient: float
) -> Array:
    """What `_trust_ratio` says, on numbers of the host."""
    phi = weight_norm.clip(*rule.weight_norm_clip) if rule.weight_norm_clip else weight_norm
    with np.errstate(all="ignore"):
        value = weight_norm.dtype.type(coefficient) * phi / denominator
    if rule.clip:
        value = value.clip(*rule.clip)
    adapts = adapt & (weight_norm > 0) & (update_norm > 0)
    chosen: Array = np.where(adapts, value, value.dtype.type(1))
    return chosen
