"""A plan as text, or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lightning_scale.plan import comparison, schedule, warnings
from lightning_scale.plan.communication import Link
from lightning_scale.plan.comparison import Machine
from lightning_scale.plan.configured import Configured, refusals
from lightning_scale.plan.memory import Memory, Shapes, largest_model
from lightning_scale.plan.rehearsal import Rehearsed


@dataclass(frozen=True)
class Timing:
    """What weak scaling is worked out from."""

    link: Link
    compute: float
    """Seconds that a micro-batch takes."""


def report(found: Rehearsed, configured: Configured, machine: Machine, timing: Timing | None, *, as_json: bool) -> str:
    """What a rehearsal has found, as text or as JSON.

    Args:
        found: That.
        configured: The strategy and precision.
        machine: What the run is to be placed on.
        timing: The link, where the user has given one.
        as_json: Write JSON; else text.
    """
    plan, optimizer = found.schedule, found.optimizers[0] if found.optimizers else None
    said = [*refusals(configured, found.optimizers), *warnings.of_schedule(plan)]
    if optimizer is None or len(found.optimizers) > 1:
        shapes = None
    else:
        shapes = comparison.shapes_of(found.model, optimizer)
        own = comparison.by_strategy(shapes, optimizer, configured, machine)
        others = comparison.by_optimizer(shapes, configured, machine)
        if configured.strategy in own and machine.device_memory is not None:
            needed = own[configured.strategy].device.total
            if needed > machine.device_memory:
                said.insert(
                    0,
                    f"The model does not fit: {configured.strategy} keeps {needed / 1e9:,.4g} GB on each device, which has"
                    f" {machine.device_memory / 1e9:,.4g}, before any activations.",
                )
    if as_json:
        content: dict[str, Any] = {"schedule": schedule.as_json(plan), "warnings": said}
        if shapes is not None:
            content["memory"] = {
                "parameters": shapes.numel,
                "precision": configured.precision,
                "strategies": {name: _held(m, shapes, machine) for name, m in own.items()},
                "optimizers": {
                    kind: {name: _held(m, shapes, machine) for name, m in kept.items()} for kind, kept in others.items()
                },
            }
            content["communication"] = comparison.communication_rows(plan, shapes, configured.precision)
            if timing is not None:
                content["scaling"] = _scaling(found, shapes, configured, machine, timing)
        return json.dumps(content, indent=1)
    parts = ["SCHEDULE", schedule.schedule_table(plan), schedule.totals_line(plan)]
    if said:
        parts += ["\nWARNINGS", *(f"- {sentence}" for sentence in said)]
    if shapes is not None:
        parts += ["\nMEMORY", comparison.memory_text(shapes, own, others, configured, machine)]
        parts += ["\nCOMMUNICATION", comparison.communication_text(plan, shapes, configured.precision)]
        if timing is not None:
            rows = _scaling(found, shapes, configured, machine, timing)
            parts.append(comparison.scaling_text(rows, configured.strategy or "ddp"))
    return "\n".join(parts)


def _held(found: Memory, shapes: Shapes, machine: Machine) -> dict[str, Any]:
    held: dict[str, Any] = {
        "device": {**asdict(found.device), "total": found.device.total},
        "host": {**asdict(found.host), "total": found.host.total},
    }
    if machine.device_memory is not None:
        held["left"] = machine.device_memory - found.device.total
        held["largest_model"] = largest_model(found, shapes, machine.device_memory)
    return held


def _scaling(
    found: Rehearsed, shapes: Shapes, configured: Configured, machine: Machine, timing: Timing
) -> list[dict[str, float]]:
    return comparison.scaling_rows(
        found.schedule, shapes, configured, timing.link, timing.compute, machine.ranks_per_node
    )
