"""The names that a Trainer knows the strategies by."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import StrategyRegistry

from lightning_scale.strategies.zero.strategy import ZeROStrategy


def register() -> None:
    """Register zero1, zero2, zero3, and each with the optimizer (and zero3's parameters) in CPU memory."""
    for stage in (1, 2, 3):
        _register(f"zero{stage}", f"ZeRO stage {stage}", stage=stage)
        offload = {"offload_optimizer": "cpu", **({"offload_parameters": "cpu"} if stage == 3 else {})}
        _register(f"zero{stage}_offload", f"ZeRO stage {stage} with CPU offload", stage=stage, **offload)


def _register(name: str, description: str, **options: Any) -> None:
    if name not in StrategyRegistry:
        StrategyRegistry.register(name, ZeROStrategy, description=f"lightning_scale: {description}", **options)
