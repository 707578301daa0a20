"""Which layers' gradients were not finite in a step, on this rank, wherever gradients are."""

from __future__ import annotations

import lightning.pytorch as L
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.backends.norms import nonfinite
from lightning_scale.optim.dtensor import local
from lightning_scale.optim.groups import parameter_names
from lightning_scale.window.mean_gradient import KeepsGradients


class GradientWatch:
    """Reads gradients before they are clipped, for a clip by the norm spreads a NaN over all of them.

    Args:
        trainer: In ``fit``, when there are optimizers.
        module: The module, whose names parameters have.
        optimizer: The optimizer that the user configured.

    Attributes:
        names: The layers' names, in the order of what `after_step` returns.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        self._strategy = trainer.strategy
        self._flags: Tensor | None = None
        if isinstance(self._strategy, KeepsGradients):
            self.names = self._strategy.watch_gradients()
            self._params: list[Tensor] = []
            return
        own = {id(p): name for name, p in module.named_parameters()}
        names = parameter_names(optimizer)
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self.names = [own.get(id(p), names[id(p)]) for p in self._params]

    def before_step(self) -> None:
        """After the window's gradients are summed over ranks, before they are clipped."""
        if self._params:
            grads = [[] if p.grad is None else [local(p.grad)] for p in self._params]
            self._flags = nonfinite(grads, next((g.device for (g,) in filter(None, grads)), self._params[0].device))

    def after_step(self) -> Tensor | None:
        """Of the last step: whether each layer's gradient was not finite, [layers] bool; None before the first."""
        return self._strategy.nonfinite_layers() if isinstance(self._strategy, KeepsGradients) else self._flags
