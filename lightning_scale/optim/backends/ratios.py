"""From the norms of a layer to its trust ratio, for every backend: on one number a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, TrustRatio
from lightning_scale.optim.backends.device import constant

Array = NDArray[Any]


def trust_coefficient(group: Mapping[str, Any]) -> float:
    """LARS' η."""
    if group["trust_coefficient"] is not None:
        return float(group["trust_coefficient"])
    return 1.0 if group["trust_norm"] == "momentum" else 0.001


def lamb_ratio(bucket: Bucket, weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """LAMB's: φ(‖w‖) / ‖u‖ of each layer, 1-D."""
    return _trust_ratio(weight_norm, update_norm, bucket.trust, update_norm)


def lars_ratio(bucket: Bucket, weight_norm: Tensor, other_norm: Tensor) -> Tensor:
    """LARS': η φ(‖w‖) / (‖g‖ + λ ‖w‖ + ε), or η φ(‖w‖) / ‖m‖ of each layer, 1-D."""
    denominator = other_norm
    if bucket.group["trust_norm"] == "gradient":
        decay = constant(bucket.layout, "decays", bucket.weight_decay, weight_norm.dtype, weight_norm.device)
        denominator = other_norm + decay * weight_norm + bucket.group["eps"]
    return _trust_ratio(weight_norm, other_norm, bucket.trust, denominator, trust_coefficient(bucket.group))


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
        # By numpy, which takes a microsecond for an operation where torch takes many.
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
