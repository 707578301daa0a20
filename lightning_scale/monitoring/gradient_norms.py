"""The norm of each micro-batch's gradient, taken by hooks in the backward pass before gradients are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_scale.one_run import OfOneRun


class GradientNormHooks(OfOneRun):
    """Measures the gradients of one backward pass by themselves: before they are added to those of earlier micro-batches,
    and before DDP averages them. Nothing is copied; each gradient is read once more.

    Args:
        params: Gives the parameters whose gradients are measured, for each pass anew; those that need none then are left out.
    """

    def __init__(self, params: Callable[[], Iterable[Tensor]]) -> None:
        self._params = params
        self._handles: list[Any] = []
        self._norms: dict[int, Tensor] = {}
        self.in_parts = False
        """Whether some parameter's gradient has ever come in several parts, whose norms do not add up."""

    def open(self) -> None:
        """Set the hooks; to be called before a backward pass."""
        self.close()
        self._norms = {}
        self._handles = [
            p.register_hook(lambda grad, key=key: self._see(key, grad))  # type: ignore[misc, no-untyped-call]
            for key, p in enumerate(p for p in self._params() if p.requires_grad)
        ]

    def _see(self, key: int, grad: Tensor) -> None:
        self.in_parts |= key in self._norms
        self._norms[key] = norm(grad)

    def close(self) -> list[Tensor]:
        """Remove the hooks after the pass, and return the norms of the gradients that came (0-d float32, one a parameter)."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return list(self._norms.values())


def norm(grad: Tensor) -> Tensor:
    """Return ‖g‖ as a 0-d tensor on the device of ``grad``, in float32 or wider."""
    grad = grad.detach()
    if grad.is_sparse:
        grad = grad.coalesce().values()
    found: Tensor = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
    return found


def square_of(norms: Sequence[Tensor]) -> float:
    """Return the sum of squared norms, in float64; the host waits for their devices."""
    if not norms:
        return 0.0
    together = torch.stack([n.to(norms[0]) for n in norms])
    return float(together.cpu().double().square().sum())
