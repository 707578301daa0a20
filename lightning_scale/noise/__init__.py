"""The gradient noise scale: what micro-batches' gradients say of how large a batch is worth its samples."""

from __future__ import annotations

from lightning_scale.noise.estimate import Estimate, UnitSums, estimate, unbiased
from lightning_scale.noise.smoothed import SmoothedNoise
from lightning_scale.noise.taps import GradientTaps

__all__ = ["Estimate", "GradientTaps", "SmoothedNoise", "UnitSums", "estimate", "unbiased"]
