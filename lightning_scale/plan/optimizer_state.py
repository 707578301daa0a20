"""Measures how large an optimizer's state is: its own code makes it, on parameters without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim import LAMB
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.groups import names_of
from lightning_scale.optim.layerwise import LayerwiseOptimizer
from lightning_scale.optim.layout import layer_info
from lightning_scale.optim.registry import REGISTRY, Entry
from lightning_scale.optim.state.moments import in_eight_bits

Make = Callable[[list[tuple[str, Tensor]]], Optimizer]


def _of_registry(entry: Entry) -> Make:
    return lambda named: entry.kind(named, **{"lr": 0.1, **entry.options})  # type: ignore[call-arg]


KINDS: dict[str, Make] = {
    "SGD, momentum": lambda named: torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9),
    "AdamW": lambda named: torch.optim.AdamW([p for _, p in named], lr=0.1),
    **{name: _of_registry(entry) for name, entry in REGISTRY.items()},
}
"""The optimizers that a plan compares."""


def state_bytes(optimizer: Optimizer) -> list[int] | None:
    """Return the bytes of state of each parameter that is trained, in the order of the groups; None where that cannot be told.

    A float32 master copy (``master_weights``) is not counted. The optimizer cannot be used any more.

    Args:
        optimizer: An optimizer before its first step, with parameters on the meta device.
    """
    params = [(group, p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if isinstance(optimizer, OptimizerBase):
        return [_bytes(optimizer._expected_state(group, p)) for group, p in params]
    for _, p in params:
        p.grad = torch.empty_like(p)
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError, TypeError):  # it looks into its tensors, or wants a closure
        return None
    return [_bytes(optimizer.state[p]) for _, p in params]


def kept_updates(optimizer: Optimizer) -> list[list[int]]:
    """Return the sizes of the layers whose float32 updates a step on a CPU keeps from its first pass to its second.

    There is a list for every run of layers that are stepped one after the other: those of a group with moments in 8 bits, and
    then its others. Where the step has one pass, where its norms are known before it, and where the reference takes it, which
    keeps one layer's update at the most, there are none.

    Args:
        optimizer: An optimizer with parameters of the dtype that it will step.
    """
    if not isinstance(optimizer, LayerwiseOptimizer) or optimizer.fused is False:
        return []
    found: list[list[int]] = []
    for number, group in enumerate(optimizer.param_groups):
        sizes: dict[bool, list[int]] = {True: [], False: []}  # by whether their moments are in 8 bits
        for name, p in zip(names_of(group, number), group["params"], strict=True):
            if p.requires_grad and p.dtype != torch.float64:
                layer = layer_info(name, p.shape, optimizer.eight_bit_except or ())
                sizes[in_eight_bits(layer, torch.float32, optimizer._eight_bit_from)].append(layer.numel)
        # LARS' update is its momentum, which waits in the state unless it is rounded there.
        if isinstance(optimizer, LAMB) or (group.get("trust_norm") == "momentum" and sizes[True]):
            found += sizes.values()
    return [own for own in found if own]


def with_dtype(optimizer: Optimizer, dtype: torch.dtype) -> Optimizer:
    """Give the optimizer's parameters, on the meta device, another dtype, and forget its state; return the optimizer."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None
            p.data = torch.empty(p.shape, dtype=dtype, device="meta")
    return optimizer


def named_like(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """Return parameters of these shapes without memory, named by their place."""
    return [
        (str(i), torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))) for i, shape in enumerate(shapes)
    ]


def keeps_master(optimizer: Optimizer) -> bool:
    """Return whether the optimizer keeps a float32 copy of low-precision parameters in its state."""
    return any(group.get("master_weights", False) for group in optimizer.param_groups)


def _bytes(state: dict[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))
