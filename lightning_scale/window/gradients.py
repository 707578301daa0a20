"""Where the gradients of a window are, for its mean: with the parameters, or with a strategy that keeps them itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer


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
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if grads and not (isinstance(divisor, float) and divisor == 1.0):
        torch._foreach_div_(grads, divisor)


def users_own(optimizer: Optimizer) -> Optimizer:
    """The optimizer that the user configured, out of a strategy's wrapping."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) else optimizer
