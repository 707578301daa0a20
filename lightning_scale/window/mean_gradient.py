"""The mean gradient over all items of a window and of all ranks, where micro-batches hold different numbers of items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from lightning_scale.optim.backends.device import widest
from lightning_scale.optim.dtensor import local

ITEMS_KEY = "num_items"
"""``training_step`` may return ``{"loss": mean over n items, "num_items": n}`` (masked tokens, say); else samples count."""


Items = float | Tensor
"""A number of items: a 0-d tensor where the module gave one on an accelerator, so that no micro-batch waits for it."""


def items_of(output: Any, samples: int) -> Items:
    """How many items one rank's loss of one micro-batch is the mean of.

    Args:
        output: What ``training_step`` returned.
        samples: The micro-batch's samples on this rank: they count where ``training_step`` names no items.
    """
    if isinstance(output, Mapping) and ITEMS_KEY in output:
        items = output[ITEMS_KEY]
        if isinstance(items, Tensor) and _on_accelerator(items):
            return items.detach().reshape(()).to(widest(items.device))
        return float(items)
    return float(samples)


def _on_accelerator(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def samples_of(batch: Any, nominal: int | None) -> int:
    """Samples that one rank's micro-batch holds: what its tensors' first dimensions say, if that can be.

    A micro-batch can hold fewer samples than were asked for (of a ``collate_fn`` that filters), never more.

    Args:
        batch: The micro-batch: tensors in any nesting of lists, tuples, mappings and dataclasses.
        nominal: The number asked of the loader; it counts, with a warning, where the tensors say nothing that can be.
    """
    sizes = {len(leaf) for leaf in tree_leaves(_plain(batch)) if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if nominal is None:
        return min(sizes, default=1)
    if len(sizes) == 1 and max(sizes) < nominal:
        rank_zero_warn(
            f"a micro-batch's tensors have the first dimension {max(sizes)}, and {nominal} samples were asked for: it is counted"
            f" as {max(sizes)} samples, as of a collate_fn that leaves some out. If the first dimension is something else, let"
            f' training_step return {{"loss": ..., "{ITEMS_KEY}": how many}}.'
        )
        return max(sizes)
    if sizes and nominal not in sizes:
        rank_zero_warn(
            f"a micro-batch's tensors have the first dimensions {sorted(sizes)}, and the loader's micro-batch is {nominal}:"
            f" it is counted as {nominal} samples. If its loss is a mean over something else, let training_step return"
            f' {{"loss": ..., "{ITEMS_KEY}": how many}}.'
        )
    return nominal


def _plain(batch: Any) -> Any:
    """Mappings and dataclasses as the dicts that pytree goes into."""
    if is_dataclass(batch) and not isinstance(batch, type):
        return {f.name: _plain(getattr(batch, f.name)) for f in fields(batch)}
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_plain(value) for value in batch]
    return batch


class MeanOverItems:
    """Weighs each micro-batch's gradient by its items, and divides the sum once.

    Each rank's loss is a mean over its n items; what is wanted is Σ n·∇loss / Σ n over micro-batches and ranks. Gradients
    are weighed as they are computed, by n / unit, and divided at the end by Σ n / (unit · ranks), for DDP averages over
    ranks. The unit (the items of the run's first micro-batch, averaged over ranks) keeps the weights near 1, so that
    float16 stays in range; it is part of checkpoints, for it decides roundings.
    """

    def __init__(self) -> None:
        self.unit: float | None = None
        self._sum: Items = 0.0

    def begin(self) -> None:
        """A new window."""
        self._sum = 0.0

    def weigh(self, loss: Tensor, items: Items, trainer: L.Trainer) -> None:
        """Before the backward pass of a micro-batch; every rank calls it as often."""
        if self.unit is None:
            self.unit = float(_sum_over_ranks(items, trainer)) / trainer.world_size or 1.0
        self._sum = self._sum + items  # not in place: the sum may be a tensor that the module goes on with
        weight = items / self.unit
        if loss.requires_grad and (isinstance(weight, Tensor) or weight != 1):
            loss.register_hook(lambda gradient: (gradient * weight).to(gradient.dtype))  # type: ignore[no-untyped-call]

    def divisor(self, trainer: L.Trainer) -> float | Tensor:
        """At the end of a window: what turns the gradients' sum into their mean; every rank calls it."""
        if self.unit is None:
            return 1.0
        total = _sum_over_ranks(self._sum, trainer)  # stays on the device: no step waits for it
        if isinstance(total, Tensor):
            return torch.where(total > 0, total / (self.unit * trainer.world_size), 1.0)
        return total / self.unit if total > 0 else 1.0


def _sum_over_ranks(value: Items, trainer: L.Trainer) -> Items:
    """One scalar collective where there are several ranks."""
    if trainer.world_size == 1:
        return value
    device = trainer.strategy.root_device
    scalar = torch.as_tensor(value, dtype=widest(device), device=device)
    return sum_over_ranks(scalar, trainer)


def sum_over_ranks(tensor: Tensor, trainer: L.Trainer) -> Tensor:
    """Its sum over all ranks, in one collective: Lightning's ``strategy.reduce`` first waits at a barrier."""
    total = tensor.clone()  # a collective writes into what it is given, and this may be the items of a micro-batch
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        return total
    reduced = trainer.strategy.reduce(total, reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced


@dataclass(frozen=True)
class MicroBatch:
    """One rank's micro-batch, between its loss and its backward pass."""

    samples: int
    """How many samples the micro-batch holds."""
    items: Items
    """How many items its loss is the mean of: samples, unless ``training_step`` says otherwise."""
    weight: Items
    """What its gradient is multiplied with before it is added to those of the others."""


@runtime_checkable
class KeepsGradients(Protocol):
    """A strategy whose gradients are complete only inside the optimizer's step."""

    def divide_gradients(self, divisor: float | Tensor) -> None:
        """Divide the gradients of the step that follows, before anything is computed of them."""

    def watch_gradients(self) -> list[str]:
        """From the next step on, note which layers' gradients are not finite; the layers' names."""

    def nonfinite_layers(self) -> Tensor | None:
        """What was noted of the last step, on this rank: [layers] bool."""


def divide(divisor: float | Tensor, optimizer: Optimizer, trainer: L.Trainer) -> None:
    """Divide the gradients of the step that follows, in place."""
    strategy = trainer.strategy
    if isinstance(strategy, KeepsGradients):
        strategy.divide_gradients(divisor)
        return
    # (Of tensor parallelism some are sharded, and others are not.)
    grads = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if grads and not (isinstance(divisor, float) and divisor == 1.0):
        torch._foreach_div_(grads, divisor)


def users_own(optimizer: Optimizer) -> Optimizer:
    """The optimizer that the user configured, out of a strategy's wrapping."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else optimizer
