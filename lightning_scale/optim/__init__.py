"""Layer-wise optimizers for large batches."""

from __future__ import annotations

from lightning_scale.optim.lamb import LAMB
from lightning_scale.optim.lars import LARS
from lightning_scale.optim.layer_stats import LayerStats

__all__ = ["LAMB", "LARS", "LayerStats"]
