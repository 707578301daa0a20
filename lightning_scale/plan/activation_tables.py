"""What micro-batches take, and the largest that fit under every strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_scale.plan.activations import Activations, Measured, computing_of
from lightning_scale.plan.configured import Configured
from lightning_scale.plan.memory import Memory
from lightning_scale.plan.text import count, size, table

_EVEN = 0.01
"""How far memory may be from a line over samples and still be called one."""


def under(strategy: str, measured: Measured, configured: Configured) -> list[Activations]:
    """Each stage's activations under a strategy; empty where they are left out."""
    if measured.left_out is not None:
        return []
    return measured.by_computing[computing_of(strategy, configured)]


def largest_micro_batches(
    own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int
) -> dict[str, list[dict[str, Any]]]:
    """For each strategy and stage: what is left, the largest micro-batch for it, and whether the run's own fits."""
    found = {}
    for strategy, held in own.items():
        room = device_memory - held.device.total
        found[strategy] = [
            {
                "stage": one.stage,
                "micro_batch_size": one.micro_batch_size,
                "left": room - one.bytes,
                "largest": one.largest(room),
                "fits": one.bytes <= room,
            }
            for one in under(strategy, measured, configured)
        ]
    return found


def too_large(own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int) -> list[str]:
    """A sentence for each stage whose micro-batch does not fit beside states that do."""
    strategy = configured.strategy
    if strategy is None or strategy not in own:
        return []
    total = own[strategy].device.total
    return [
        f"The micro-batch{_of(one)} does not fit: {one.micro_batch_size:,} samples take {size(one.bytes)}, and {strategy}"
        f" leaves {size(device_memory - total)} of each device; "
        + (
            f"the largest is {largest:,}."
            if (largest := one.largest(device_memory - total))
            else "nor does one sample."
        )
        for one in under(strategy, measured, configured)
        if total <= device_memory < total + one.bytes
    ]


def as_json(measured: Measured) -> dict[str, Any]:
    """What was traced, or why nothing was."""
    lines = [one for stages in measured.by_computing.values() for one in stages]
    return {
        "left_out": measured.left_out,
        "traced": [{**asdict(one), "computing": str(one.computing)} for one in lines],
    }


def activations_text(
    own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int | None
) -> str:
    """Tables of what was traced, and of the largest micro-batches where the device is known."""
    if measured.left_out is not None:
        return f"Left out: {measured.left_out}."
    lines = [one for stages in measured.by_computing.values() for one in stages]
    head = ["stage", "length", "micro-batch", "computed in", "a micro-batch", "a sample", "and fixed"]
    rows = [
        [
            *(count(number) for number in (one.stage, one.sequence_length, one.micro_batch_size)),
            str(one.computing),
            *(size(number) for number in (one.bytes, one.per_sample, one.fixed)),
        ]
        for one in lines
    ]
    said = ["The most bytes at once in a micro-batch's forward and backward pass:", table([head, *rows], left_from=7)]
    worst = max(lines, key=lambda one: one.off)
    if worst.off > _EVEN:
        said.append(
            f"Memory does not grow evenly with samples (a line misses it by {worst.off:.0%}{_of(worst)}): other micro-batches"
            " than the run's are estimates."
        )
    if device_memory is not None and own:
        said += [
            "The largest micro-batch beside the model's states:",
            _largest_table(own, measured, configured, device_memory),
        ]
    return "\n".join(said)


def _largest_table(own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int) -> str:
    found = largest_micro_batches(own, measured, configured, device_memory)
    stages = next(iter(found.values()))
    head = ["", *("every step" if one["stage"] is None else f"stage {one['stage']}" for one in stages)]
    rows = []
    for strategy, kept in found.items():
        cells = [f"{one['largest']:,}{'' if one['fits'] else ' (less than asked for)'}" for one in kept]
        rows.append([f"{'> ' if strategy == configured.strategy else ''}{strategy}", *cells])
    return table([head, *rows], left_from=len(head))


def _of(one: Activations) -> str:
    return "" if one.stage is None else f" of stage {one.stage}"
