"""What a step of a configured run exchanges, in the precision that each strategy sends in."""

from __future__ import annotations

import math

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
    elements = sum(map(math.prod, shapes.trained))
    return traffic(strategy, reduced * elements, micro_batches, gathered * elements)
