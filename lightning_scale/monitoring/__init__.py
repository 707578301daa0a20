"""What the monitors measure, keep and draw: the gradient noise scale, trust ratios, and pictures at the end of a run."""

from __future__ import annotations

from lightning_scale.monitoring.gradient_norms import GradientNormHooks, norm, square_of
from lightning_scale.monitoring.history import History
from lightning_scale.monitoring.noise_scale import Estimate, SmoothedNoise, UnitSums, estimate, unbiased
from lightning_scale.monitoring.picture import EndOfFitPicture
from lightning_scale.monitoring.trust_ratios import RatioWarnings

__all__ = [
    "EndOfFitPicture",
    "Estimate",
    "GradientNormHooks",
    "History",
    "RatioWarnings",
    "SmoothedNoise",
    "UnitSums",
    "estimate",
    "norm",
    "square_of",
    "unbiased",
]
