"""Writes a plan as text or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lightning_scale.plan.activations import (
    Measured,
    activations_json,
    activations_text,
    largest_micro_batches,
    micro_batches_too_large,
)
from lightning_scale.plan.communication import communication_rows, communication_text
from lightning_scale.plan.configuration import Configured, Machine, refusals
from lightning_scale.plan.dry_run import DryRun
from lightning_scale.plan.memory import (
    Memory,
    Shapes,
    by_optimizer,
    by_strategy,
    largest_model,
    memory_text,
    shapes_of,
)
from lightning_scale.plan.scale_up import Timing, larger_batches, larger_text, scaling_rows, scaling_text
from lightning_scale.plan.schedule import schedule_json, schedule_table, schedule_warnings, totals_line


@dataclass(frozen=True)
class _Held:
    """What is known of the memory that the model takes."""

    shapes: Shapes
    own: dict[str, Memory]
    """Each rank's memory by strategy, with the run's optimizer; ``others``: by optimizer and strategy."""
    others: dict[str, dict[str, Memory]]


def report(
    found: DryRun,
    configured: Configured,
    machine: Machine,
    timing: Timing | None,
    measured: Measured,
    *,
    as_json: bool,
) -> str:
    """Return the plan of a run as text or as JSON.

    Args:
        found: What the dry run has found.
        configured: The strategy and the precision.
        machine: The machine that the run is to be placed on.
        timing: The link between ranks, where the user has given one.
        measured: The activations, as far as they could be traced.
        as_json: Whether to write JSON; otherwise text.
    """
    held = _held(found, configured, machine)
    said = [*refusals(configured, found.optimizers), *schedule_warnings(found.schedule)]
    if held is not None:
        said = [*_does_not_fit(held, configured, machine, measured), *said]
    rows = _traffic(found, configured, machine, timing, held) if held is not None else {}
    if as_json:
        content = {"schedule": schedule_json(found.schedule), "warnings": said}
        content["activations"] = activations_json(measured)
        if held is not None:
            content["memory"] = _memory_json(held, configured, machine, measured)
        return json.dumps({**content, **rows}, indent=1)
    parts = ["SCHEDULE", schedule_table(found.schedule), totals_line(found.schedule)]
    if said:
        parts += ["\nWARNINGS", *(f"- {sentence}" for sentence in said)]
    if held is not None:
        parts += ["\nMEMORY", memory_text(held.shapes, held.own, held.others, configured, machine)]
    own = held.own if held is not None else {}
    parts += ["\nACTIVATIONS"]
    parts += [activations_text(own, measured, configured, machine.device_memory)]
    if held is not None:
        strategy = configured.strategy or "ddp"
        parts += ["\nCOMMUNICATION", communication_text(rows["communication"])]
        parts.append(larger_text(rows["larger_batches"], strategy))
        if "scaling" in rows:
            parts.append(scaling_text(rows["scaling"], strategy))
    return "\n".join(parts)


def _held(found: DryRun, configured: Configured, machine: Machine) -> _Held | None:
    """Return what is known of the memory; None where the run has no optimizer, or several."""
    if len(found.optimizers) != 1:
        return None
    shapes = shapes_of(found.model, found.optimizers[0])
    own = by_strategy(shapes, found.optimizers[0], configured, machine)
    return _Held(shapes, own, by_optimizer(shapes, configured, machine))


def _does_not_fit(held: _Held, configured: Configured, machine: Machine, measured: Measured) -> list[str]:
    if configured.strategy not in held.own or machine.device_memory is None:
        return []
    needed = held.own[configured.strategy].device.total
    if needed <= machine.device_memory:
        return micro_batches_too_large(held.own, measured, configured, machine.device_memory)
    return [
        f"The model does not fit: {configured.strategy} keeps {needed / 1e9:,.4g} GB on each device, which has"
        f" {machine.device_memory / 1e9:,.4g}, before any activations."
    ]


def _traffic(
    found: DryRun, configured: Configured, machine: Machine, timing: Timing | None, held: _Held
) -> dict[str, Any]:
    """Return the rows on what is sent: for each strategy, with larger batches, and (with a link) on more nodes."""
    rows: dict[str, Any] = {
        "communication": communication_rows(found.schedule, held.shapes, configured),
        "larger_batches": larger_batches(found, held.shapes, configured, timing),
    }
    if timing is not None:
        rows["scaling"] = scaling_rows(
            found.schedule, held.shapes, configured, timing.link, timing.compute, machine.ranks_per_node
        )
    return rows


def _memory_json(held: _Held, configured: Configured, machine: Machine, measured: Measured) -> dict[str, Any]:
    def one(kept: Memory) -> dict[str, Any]:
        said: dict[str, Any] = {
            "device": {**asdict(kept.device), "total": kept.device.total},
            "host": {**asdict(kept.host), "total": kept.host.total},
        }
        if machine.device_memory is not None:
            said["left"] = machine.device_memory - kept.device.total
            said["largest_model"] = largest_model(kept, held.shapes, machine.device_memory)
        return said

    strategies = {name: one(kept) for name, kept in held.own.items()}
    if machine.device_memory is not None:
        fits = largest_micro_batches(held.own, measured, configured, machine.device_memory)
        for name, stages in fits.items():
            strategies[name]["micro_batches"] = stages
    return {
        "parameters": held.shapes.numel,
        "precision": configured.precision,
        "strategies": strategies,
        "optimizers": {
            kind: {name: one(kept) for name, kept in memories.items()} for kind, memories in held.others.items()
        },
    }
