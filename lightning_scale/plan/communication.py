"""What ranks send each other for an optimizer step, and how long that takes by the latency-bandwidth model.

An all-reduce of |w| bytes among P ranks is one message and takes log2(P) · (α + |w| β), with latency α and time per byte β
(You et al. 2017, arXiv 1709.05011). A reduce-scatter or an all-gather, of which an all-reduce is made, is a message of its
own with half the bytes. Nothing is taken to overlap with computing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """What is exchanged for one optimizer step."""

    messages: int
    """Exchanges of the whole model among all ranks, however many buckets they are sent in."""
    bytes: float
    """|w| for each all-reduce, half of it for each reduce-scatter or all-gather."""


def traffic(
    strategy: str, gradient_bytes: float, micro_batches: int = 1, parameter_bytes: float | None = None
) -> Traffic:
    """What one optimizer step exchanges.

    Args:
        strategy: One of `memory.STRATEGIES`; offload changes nothing here.
        gradient_bytes: |w|, the bytes of all gradients as they are sent.
        micro_batches: Of each rank in the step. DDP and ZeRO-1 send gradients once a step, FSDP2, ZeRO-2 and ZeRO-3 at each
            micro-batch; FSDP2 and ZeRO-3 gather the parameters for each forward and each backward pass.
        parameter_bytes: The bytes of all parameters as they are gathered; None: as many.
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
    """What joins the ranks."""

    latency: float
    """α, seconds a message."""
    bandwidth: float
    """1/β, bytes a second."""


def seconds(sent: Traffic, ranks: int, link: Link) -> float:
    """How long the ranks exchange: log2(P) · (messages · α + bytes · β)."""
    return math.log2(ranks) * (sent.messages * link.latency + sent.bytes / link.bandwidth)


def efficiency(sent: Traffic, ranks: int, link: Link, compute: float) -> float:
    """Weak scaling: the share of a step that is computing, where each rank computes ``compute`` seconds on any number."""
    return compute / (compute + seconds(sent, ranks, link))


def steps_for(samples: float, batch_size: int) -> float:
    """Optimizer steps that take so many samples."""
    return samples / batch_size
