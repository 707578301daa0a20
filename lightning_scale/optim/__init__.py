"""Layer-wise optimizers for large batches, and 8-bit states that make room for them."""

from __future__ import annotations

from lightning_scale.optim.adamw import AdamW8bit
from lightning_scale.optim.backends.bucket import IncompleteStep
from lightning_scale.optim.lamb import LAMB, LAMB8bit
from lightning_scale.optim.lars import LARS, LARS8bit
from lightning_scale.optim.layerwise import LayerRule, LayerStats
from lightning_scale.optim.sgd import SGD8bit

__all__ = [
    "LAMB",
    "LARS",
    "AdamW8bit",
    "IncompleteStep",
    "LAMB8bit",
    "LARS8bit",
    "LayerRule",
    "LayerStats",
    "SGD8bit",
]
