"""Layer-wise optimizers for large batches, and 8-bit states that make room for them."""

from __future__ import annotations

from lightning_scale.optim.adamw8bit import AdamW8bit
from lightning_scale.optim.kernels.work import IncompleteStep
from lightning_scale.optim.lamb import LAMB
from lightning_scale.optim.lamb8bit import LAMB8bit
from lightning_scale.optim.lars import LARS
from lightning_scale.optim.lars8bit import LARS8bit
from lightning_scale.optim.layer_stats import LayerRule, LayerStats
from lightning_scale.optim.sgd8bit import SGD8bit

__all__ = ["LAMB", "LAMB8bit", "LARS", "LARS8bit", "AdamW8bit", "IncompleteStep", "LayerRule", "LayerStats", "SGD8bit"]
