"""What happens to a window's gradients before DeepSpeed steps: the mean, one clip, one look for NaN and Inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.backends.norms import global_norm, nonfinite
from lightning_scale.optim.base import GuardedOptimizer
from lightning_scale.optim.layout import Layout
from lightning_scale.strategies.zero.flat import shares_of
from lightning_scale.strategies.zero.partitions import Partitions


class Preparation:
    """Runs ahead of every step, when the gradients of its window are summed and nothing has been computed of them.

    Args:
        partitions: Where the gradients are.
        optimizer: The user's.
        clip: The largest global norm of gradients, as ``Trainer(gradient_clip_val)`` says; 0: not clipped.
        layouts: Which layers' gradients lie in each of the partitions' flat tensors.
    """

    def __init__(self, partitions: Partitions, optimizer: Optimizer, clip: float, layouts: Sequence[Layout]) -> None:
        self.divisor: float | Tensor = 1.0
        """What the next step's gradients are divided by first."""
        self._partitions = partitions
        self._optimizer = optimizer
        self._clip = clip
        self._layouts = layouts
        self.watching = False
        """Whether to note `nonfinite`."""
        self.nonfinite: Tensor | None = None
        """Which layers' gradients were not finite in the last step, on this rank: in `layers`' order."""

    @property
    def layers(self) -> list[str]:
        """The names of all layers; one that lies in several flat tensors stands there as often."""
        return [layer.name for layout in self._layouts for layer in layout.layers]

    @torch.no_grad()
    def __call__(self) -> None:
        """Every rank calls it in every step."""
        gradients = self._partitions.gradients()
        divisor, self.divisor = self.divisor, 1.0
        if self.watching:  # a clip by the norm would spread a NaN over all of them
            held = [
                s for lay, (_, tensors) in zip(self._layouts, gradients, strict=True) for s in shares_of(lay, tensors)
            ]
            self.nonfinite = nonfinite(held, gradients[0][1][0].device)
        if isinstance(divisor, Tensor) or divisor != 1.0:
            for _, tensors in gradients:
                own = divisor.to(tensors[0].device) if isinstance(divisor, Tensor) else divisor
                torch._foreach_div_(tensors, own)
        if self._clip > 0:
            # As torch.nn.utils.clip_grad_norm_ does it where gradients are whole.
            factor = (self._clip / (global_norm(gradients) + 1e-6)).clamp(max=1.0)
            for _, tensors in gradients:
                torch._foreach_mul_(tensors, factor.to(tensors[0].device, tensors[0].dtype))
        if isinstance(self._optimizer, GuardedOptimizer):
            self._optimizer.decide(gradients)
