"""What ranks send each other for an optimizer step, and how long that takes by the latency-bandwidth model.

An all-reduce of |w| bytes among P ranks is one message and takes log2(P) · (α + |w| β), with latency α and time per byte β
(You et al. 2017, arXiv 1709.05011). A reduce-scatter or an all-gather, of which an all-reduce is made, is a message of its
own with half the bytes. Nothing is taken to overlap with computing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_scale.plan.configuration import STRATEGIES, Configured
from lightning_scale.plan.formatting import size, table
from lightning_scale.plan.memory import Shapes, parameter_bytes
from lightning_scale.plan.schedule import Schedule


@dataclass(frozen=True)
class Traffic:
    """The messages and bytes that ranks exchange for one optimizer step."""

    messages: int
    """The number of exchanges of the whole model among all ranks, however many buckets they are sent in."""
    bytes: float
    """The bytes in them: |w| for each all-reduce, half of that for each reduce-scatter or all-gather."""


def traffic(
    strategy: str, gradient_bytes: float, micro_batches: int = 1, parameter_bytes: float | None = None
) -> Traffic:
    """Return what one optimizer step exchanges, from the bytes of gradients and parameters as they are sent.

    Args:
        strategy: One of `configuration.STRATEGIES`; offload changes nothing here.
        gradient_bytes: |w|, the bytes of all gradients as they are sent.
        micro_batches: The number that each rank has in the step. DDP and ZeRO-1 send gradients once a step, FSDP2, ZeRO-2
            and ZeRO-3 at each micro-batch; FSDP2 and ZeRO-3 gather the parameters for each forward and backward pass.
        parameter_bytes: The bytes of all parameters as they are gathered; None for as many.
    """
    kind = strategy.removesuffix("_offload")
    if kind == "ddp":
        return Traffic(1, gradient_bytes)
    reductions = 1 if kind == "zero1" else micro_batches
    gathers = {"zero1": 1, "zero2": 1, "zero3": 2 * micro_batches, "fsdp2": 2 * micro_batches}[kind]
    gathered = gradient_bytes if parameter_bytes is None else parameter_bytes
    return Traffic(reductions + gathers, (reductions * gradient_bytes + gathers * gathered) / 2)


@dataclass(frozen=True)
class Link:
    """The link that joins the ranks."""

    latency: float
    """α, the seconds that a message takes beside its bytes."""
    bandwidth: float
    """1/β, in bytes a second."""


def seconds(sent: Traffic, ranks: int, link: Link) -> float:
    """Return how long the ranks exchange: log2(P) · (messages · α + bytes · β)."""
    return math.log2(ranks) * (sent.messages * link.latency + sent.bytes / link.bandwidth)


def efficiency(sent: Traffic, ranks: int, link: Link, compute: float) -> float:
    """Return the share of a step that is computing, where each rank computes for ``compute`` seconds (weak scaling)."""
    return compute / (compute + seconds(sent, ranks, link))


def steps_for(samples: float, batch_size: int) -> float:
    """Return how many optimizer steps of a batch take so many samples; not rounded."""
    return samples / batch_size


_BYTES = {"bfloat16": 2, "float32": 4}


def step_traffic(strategy: str, shapes: Shapes, found: Configured, micro_batches: int) -> Traffic:
    """Return what one optimizer step exchanges, in the precision that the strategy sends in.

    Args:
        strategy: One of `configuration.STRATEGIES`, the configured one or another.
        shapes: The shapes of the model's parameters.
        found: The Trainer's precision, and FSDP2's own.
        micro_batches: The number that each rank has in the step.
    """
    gathered = reduced = parameter_bytes(strategy, found.precision)
    if strategy.startswith("fsdp2"):
        gathered = reduced = _BYTES.get(found.param_dtype or "", gathered)
        reduced = _BYTES.get(found.reduce_dtype or "", reduced)
    # Those that are not trained are sharded, too; ZeRO-1 and 2 gather what they have stepped.
    all_gathered = shapes.numel if strategy.startswith(("fsdp2", "zero3")) else shapes.trained_numel
    return traffic(strategy, reduced * shapes.trained_numel, micro_batches, gathered * all_gathered)


def traffic_of(schedule: Schedule, shapes: Shapes, strategy: str, found: Configured) -> list[Traffic]:
    """Return what each step of a run exchanges, in their order."""
    kinds = {m: step_traffic(strategy, shapes, found, m) for m in {step.micro_batches for step in schedule.steps}}
    return [kinds[step.micro_batches] for step in schedule.steps]


def communication_rows(schedule: Schedule, shapes: Shapes, found: Configured) -> list[dict[str, Any]]:
    """Return the messages and bytes of the largest step, of an epoch (if its length is known) and of the run, by strategy."""
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
    """Return the rows of `communication_rows` as a table, with a sentence on what a message is."""
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
