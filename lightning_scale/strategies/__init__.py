"""Lightning strategies, and their names: ``Trainer(strategy="zero2_offload")`` after this import.

DeepSpeed is imported where a strategy is made, not here.
"""

from __future__ import annotations

from lightning_scale.strategies.zero.registry import register
from lightning_scale.strategies.zero.strategy import ZeROStrategy

register()

__all__ = ["ZeROStrategy"]
