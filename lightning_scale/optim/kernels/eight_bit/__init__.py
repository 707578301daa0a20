"""The 8-bit optimizers' arithmetic, piece by piece; which implementation runs is decided here."""

from __future__ import annotations

from lightning_scale.optim.kernels.eight_bit.reference_adamw import adamw
from lightning_scale.optim.kernels.eight_bit.reference_lamb import lamb
from lightning_scale.optim.kernels.eight_bit.reference_lars import lars
from lightning_scale.optim.kernels.eight_bit.reference_sgd import sgd

__all__ = ["adamw", "lamb", "lars", "sgd"]
