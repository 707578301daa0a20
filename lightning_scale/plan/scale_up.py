"""How a run scales: an epoch at larger batches on the same ranks, and a step on more nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_scale.plan.communication import Link, efficiency, seconds, step_traffic, steps_for
from lightning_scale.plan.configuration import Configured
from lightning_scale.plan.dry_run import DryRun
from lightning_scale.plan.formatting import count, size, table
from lightning_scale.plan.memory import Shapes
from lightning_scale.plan.schedule import Schedule


@dataclass(frozen=True)
class Timing:
    """The link and the computing time that weak scaling and an epoch's time are worked out from."""

    link: Link
    compute: float
    """The seconds that a rank computes for a micro-batch."""


def larger_batches(
    found: DryRun, shapes: Shapes, configured: Configured, timing: Timing | None
) -> list[dict[str, Any]]:
    """Return rows on an epoch of each stage at its largest batch, twice, four times ... that, up to an epoch's samples.

    The batch grows by micro-batches, on the same ranks. ``steps`` and ``messages`` are not rounded; ``exchange`` and
    ``seconds`` (that and computing) are None without a link. Stages whose epochs have no known length are left out.

    Args:
        found: The dry run.
        shapes: The shapes of the model's parameters.
        configured: The strategy and the precision.
        timing: The link between ranks, and the time of a micro-batch; None where they were not given.
    """
    strategy, ranks = configured.strategy or "ddp", found.schedule.rules.world_size
    rows = []
    for stage_input in found.inputs:
        largest = max(
            (s for s in found.schedule.steps if s.stage == stage_input.stage), key=lambda step: step.batch_size
        )
        factor = 1
        while stage_input.samples_per_epoch and (
            factor == 1 or factor * largest.batch_size <= stage_input.samples_per_epoch
        ):
            micro_batches = factor * largest.micro_batches
            steps = steps_for(stage_input.samples_per_epoch, factor * largest.batch_size)
            sent = step_traffic(strategy, shapes, configured, micro_batches)
            exchange = steps * seconds(sent, ranks, timing.link) if timing is not None else None
            rows.append(
                {
                    "stage": stage_input.stage,
                    "batch_size": factor * largest.batch_size,
                    "micro_batches": micro_batches,
                    "steps": steps,
                    "messages": steps * sent.messages,
                    "bytes": steps * sent.bytes,
                    "exchange": exchange,
                    "seconds": exchange + steps * micro_batches * timing.compute
                    if timing is not None and exchange is not None
                    else None,
                }
            )
            factor *= 2
    return rows


def larger_text(rows: Sequence[dict[str, Any]], strategy: str) -> str:
    """Return the rows of `larger_batches` as a table."""
    if not rows:
        return "What a larger batch saves is not known: nobody says how many samples an epoch has."
    timed = rows[0]["seconds"] is not None
    head = ["stage", "batch", "micro-batches", "steps", "messages", "bytes", *(["exchange (s)", "epoch (s)"] * timed)]
    lines = [
        [count(r["stage"]), f"{r['batch_size']:,}", f"{r['micro_batches']:,}", f"{r['steps']:,.1f}"]
        + [f"{r['messages']:,.0f}", size(r["bytes"])]
        + ([f"{r['exchange']:,.4g}", f"{r['seconds']:,.4g}"] if timed else [])
        for r in rows
    ]
    return "\n".join(
        [
            f"What a larger batch saves: an epoch, {strategy}, with more micro-batches on the same ranks:",
            table([head, *lines], left_from=len(head)),
        ]
    )


def scaling_rows(
    schedule: Schedule, shapes: Shapes, found: Configured, link: Link, compute: float, ranks_per_node: int
) -> list[dict[str, float]]:
    """Return rows on the run's longest step where each rank does the same on 1, 2, 4, ... nodes (weak scaling).

    The last row has at most four times the ranks of the run.

    Args:
        schedule: The steps of the run.
        shapes: The shapes of the model's parameters.
        found: The strategy and the precision.
        link: The link between ranks.
        compute: The seconds that a rank computes for a micro-batch.
        ranks_per_node: The number of ranks on a node.
    """
    step = max(schedule.steps, key=lambda one: one.micro_batches)
    sent = step_traffic(found.strategy or "ddp", shapes, found, step.micro_batches)
    work = compute * step.micro_batches
    nodes, rows = 1, []
    while nodes * ranks_per_node <= max(4 * schedule.rules.world_size, ranks_per_node):
        ranks = nodes * ranks_per_node
        rows.append(
            {
                "nodes": nodes,
                "ranks": ranks,
                "compute": work,
                "exchange": seconds(sent, ranks, link),
                "efficiency": efficiency(sent, ranks, link, work),
            }
        )
        nodes *= 2
    return rows


def scaling_text(rows: Sequence[dict[str, float]], strategy: str) -> str:
    """Return the rows of `scaling_rows` as a table."""
    lines = [
        [f"{r['nodes']:,}", f"{r['ranks']:,}", f"{r['compute']:.4g}", f"{r['exchange']:.4g}", f"{r['efficiency']:.1%}"]
        for r in rows
    ]
    head = ["nodes", "ranks", "computing (s)", "exchange (s)", "efficiency"]
    return "\n".join(
        [f"Weak scaling, {strategy}, t = compute + log2(P) (α + |w| β):", table([head, *lines], left_from=5)]
    )
