"""What a step of a configured run exchanges, in the precision that each strategy sends in."""

from __future__ import annotations

from lightning_scale.plan.communication import Traffic, traffic
from lightning_scale.plan.configured import Configured
from lightning_scale.plan.memory import Shapes, parameter_bytes

_BYTES = {"bfloat16": 2, "float32": 4}


def step_traffic(strategy: str, shapes: Shapes, found: Configured, micro_batches: int) -> Traffic:
    """What one optimizer step exchanges.

    Args:
        strategy: One of `memory.STRATEGIES`, the configured one or another.
        shapes: The model.
        found: The precision, and FSDP2's own.
        micro_batches: Of each rank in the step.
    """
    gathered = reduced = parameter_bytes(strategy, found.precision)
    if strategy.startswith("fsdp2"):
        gathered = reduced = _BYTES.get(found.param_dtype or "", gathered)
        reduced = _BYTES.get(found.reduce_dtype or "", reduced)
    # Those that are not trained are sharded, too; ZeRO-1 and 2 gather what they have stepped.
    all_gathered = shapes.numel if strategy.startswith(("fsdp2", "zero3")) else shapes.trained_numel
    return traffic(strategy, reduced * shapes.trained_numel, micro_batches, gathered * all_gathered)
