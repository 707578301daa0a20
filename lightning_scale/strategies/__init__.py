"""Lightning strategies under which a step is the step of the unsharded parameters, and their names:
``Trainer(strategy="zero2_offload")`` after this import.

DeepSpeed is imported where a strategy is made, not here.
"""

from __future__ import annotations

from lightning_scale.strategies.fsdp2 import FSDP2Strategy
from lightning_scale.strategies.zero.strategy import ZeROStrategy, register

register()

__all__ = ["FSDP2Strategy", "ZeROStrategy"]
