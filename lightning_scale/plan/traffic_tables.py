"""A run's messages under every strategy, side by side, and how a step scales with nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning_scale.plan import communication
from lightning_scale.plan.communication import Link, Traffic
from lightning_scale.plan.configured import Configured
from lightning_scale.plan.memory import STRATEGIES, Shapes
from lightning_scale.plan.step_traffic import step_traffic
from lightning_scale.plan.steps import Schedule
from lightning_scale.plan.text import size, table


def traffic_of(schedule: Schedule, shapes: Shapes, strategy: str, found: Configured) -> list[Traffic]:
    """What each step of a run exchanges."""
    kinds = {m: step_traffic(strategy, shapes, found, m) for m in {step.micro_batches for step in schedule.steps}}
    return [kinds[step.micro_batches] for step in schedule.steps]


def communication_rows(schedule: Schedule, shapes: Shapes, found: Configured) -> list[dict[str, Any]]:
    """For each strategy: messages and bytes of the largest step, of an epoch (where its length is known), of the run."""
    rows = []
    epochs = schedule.epochs
    for strategy in [name for name in STRATEGIES if not name.endswith("_offload")]:
        sent = traffic_of(schedule, shapes, strategy, found)
        most = max(sent, key=lambda one: one.bytes)
        messages, volume = sum(one.messages for one in sent), sum(one.bytes for one in sent)
        rows.append(
            {
                "strategy": strategy,
                "step": asdict(most),
                "epoch": {"messages": messages / epochs, "bytes": volume / epochs} if epochs else None,
                "run": {"messages": messages, "bytes": volume},
            }
        )
    return rows


def communication_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `communication_rows` as a table, and what a message is."""
    header = ["", "messages, a step", "bytes, a step", "messages, an epoch", "bytes, an epoch", "messages", "bytes"]
    lines = []
    for row in rows:
        epoch = row["epoch"]
        lines.append(
            [
                row["strategy"],
                f"{row['step']['messages']:,}",
                size(row["step"]["bytes"]),
                f"{epoch['messages']:,.0f}" if epoch else "-",
                size(epoch["bytes"]) if epoch else "-",
                f"{row['run']['messages']:,}",
                size(row["run"]["bytes"]),
            ]
        )
    said = (
        "A message is an exchange of the whole model among all ranks (an all-reduce, a reduce-scatter, an all-gather). Under"
        " DDP and ZeRO-1 a batch twice as large, of twice the micro-batches, sends half as much for the same samples; under"
        " the others, which send at every micro-batch, only a larger micro-batch does."
    )
    return "\n".join([table([header, *lines], left_from=len(header)), said])


def scaling_rows(
    schedule: Schedule, shapes: Shapes, found: Configured, link: Link, compute: float, ranks_per_node: int
) -> list[dict[str, float]]:
    """Weak scaling of the run's longest step: each rank does the same on 1, 2, 4, ... nodes, up to four times the run's.

    Args:
        schedule: The run.
        shapes: The model.
        found: Its strategy and precision.
        link: What joins ranks.
        compute: Seconds that a micro-batch takes.
        ranks_per_node: Ranks on a node.
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
                "exchange": communication.seconds(sent, ranks, link),
                "efficiency": communication.efficiency(sent, ranks, link, work),
            }
        )
        nodes *= 2
    return rows


def scaling_text(rows: Sequence[dict[str, float]], strategy: str) -> str:
    """The rows of `scaling_rows` as a table."""
    lines = [
        [f"{r['nodes']:,}", f"{r['ranks']:,}", f"{r['compute']:.4g}", f"{r['exchange']:.4g}", f"{r['efficiency']:.1%}"]
        for r in rows
    ]
    head = ["nodes", "ranks", "computing (s)", "exchange (s)", "efficiency"]
    return "\n".join(
        [f"Weak scaling, {strategy}, t = compute + log2(P) (α + |w| β):", table([head, *lines], left_from=5)]
    )
