"""Lightning strategies under which a step is the step of the unsharded parameters, and their names:
``Trainer(strategy="zero2_offload")`` after this import.

DeepSpeed is imported where a strategy is made, not here.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from lightning_scale.strategies.fsdp2 import FSDP2Strategy
from lightning_scale.strategies.zero.strategy import ZeROStrategy, register

register()
if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="lightning_scale: FSDP2")
    offload: Any = {"offload_parameters": "cpu"}
    StrategyRegistry.register(
        "fsdp2_offload", FSDP2Strategy, description="lightning_scale: FSDP2 on the host", **offload
    )

__all__ = ["FSDP2Strategy", "ZeROStrategy"]
