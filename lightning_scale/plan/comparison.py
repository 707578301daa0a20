"""A model's memory under every strategy, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from lightning_scale.plan.configured import Configured
from lightning_scale.plan.memory import STRATEGIES, Memory, Shapes, largest_model, memory, parameter_bytes
from lightning_scale.plan.states import KINDS, keeps_master, named_like, state_bytes, with_dtype
from lightning_scale.plan.text import size, table

_DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@dataclass(frozen=True)
class Machine:
    """What the run is to be placed on."""

    ranks: int
    ranks_per_node: int
    device_memory: int | None = None
    """Bytes."""


def shapes_of(model: LightningModule, optimizer: Optimizer) -> Shapes:
    """The model's parameters: those that the optimizer trains, in its order, and all others."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    known = {id(p) for p in trained}
    frozen = sum(p.numel() for p in model.parameters() if id(p) not in known)
    return Shapes(tuple(tuple(p.shape) for p in trained), frozen)


def by_strategy(shapes: Shapes, optimizer: Optimizer, found: Configured, machine: Machine) -> dict[str, Memory]:
    """Memory of each rank under every strategy, with the run's own optimizer; empty where its state is not known."""
    kept = {}
    for strategy in STRATEGIES:
        moments = state_bytes(with_dtype(optimizer, _stepped_dtype(strategy, found.precision)))
        if moments is None:
            return {}
        kept[strategy] = _memory(strategy, shapes, moments, found, machine, master=keeps_master(optimizer))
    return kept


def by_optimizer(shapes: Shapes, found: Configured, machine: Machine) -> dict[str, dict[str, Memory]]:
    """Memory of each rank with other optimizers, under every strategy."""
    kept: dict[str, dict[str, Memory]] = {}
    for kind, make in KINDS.items():
        moments = {
            dtype: state_bytes(make(named_like(shapes.trained, dtype)))
            for dtype in {_stepped_dtype(strategy, found.precision) for strategy in STRATEGIES}
        }
        kept[kind] = {}
        for strategy in STRATEGIES:
            own = moments[_stepped_dtype(strategy, found.precision)]
            assert own is not None, "the optimizers to compare with make their state without memory"
            kept[kind][strategy] = _memory(strategy, shapes, own, found, machine)
    return kept


def _stepped_dtype(strategy: str, precision: str) -> torch.dtype:
    """What an optimizer is given: ZeRO's flat tensors are float32."""
    return torch.float32 if strategy.startswith("zero") else _DTYPES[parameter_bytes(strategy, precision)]


def _memory(
    strategy: str, shapes: Shapes, moments: Sequence[int], found: Configured, machine: Machine, master: bool = False
) -> Memory:
    ranks = machine.ranks // found.replicas if strategy.startswith("fsdp2") else machine.ranks
    return memory(
        strategy,
        shapes,
        moments,
        max(ranks, 1),
        found.precision,
        master=master,
        bucket_elements=found.bucket_elements,
        bucket_view=found.bucket_view,
    )


def memory_text(
    shapes: Shapes, own: dict[str, Memory], others: dict[str, dict[str, Memory]], found: Configured, machine: Machine
) -> str:
    """Two tables and what they leave out."""
    header = ["", "parameters", "gradients", "moments", "copy", "buckets", "device", "host, a node"]
    if machine.device_memory is not None:
        header += ["left", "largest model (parameters)"]
    rows = []
    for strategy, held in own.items():
        device = held.device
        row = [f"{'> ' if strategy == found.strategy else ''}{strategy}"]
        row += [size(n) for n in (device.parameters, device.gradients, device.optimizer, device.master, device.buckets)]
        row += [size(device.total), size(held.host.total * machine.ranks_per_node)]
        if machine.device_memory is not None:
            left = machine.device_memory - device.total
            largest = largest_model(held, shapes, machine.device_memory)
            row += [size(left) if left >= 0 else "does not fit", f"{largest / 1e6:,.0f} M" if largest else "-"]
        rows.append(row)
    lines = [
        f"{shapes.numel:,} parameters, {found.precision}, {machine.ranks:,} rank{'s' * (machine.ranks > 1)},"
        f" {machine.ranks_per_node} a node"
    ]
    if rows:
        lines += ["Each device, with this run's optimizer:", table([header, *rows], left_from=len(header))]
    else:
        lines.append("What this run's optimizer keeps cannot be told without training.")
    lines += [
        "Each device, by optimizer:",
        table(
            [
                ["", *STRATEGIES],
                *([kind, *(size(m.device.total) for m in kept.values())] for kind, kept in others.items()),
            ],
            left_from=len(STRATEGIES) + 1,
        ),
        "Left out: activations (below), layers that FSDP2 and ZeRO-3 gather for a moment, and what CUDA and its allocator take."
        " What is left of a device is for those.",
    ]
    return "\n".join(lines)
