"""What the four 8-bit optimizers share: their state, and buckets of tensors as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_scale.optim.gather import Gathered
from lightning_scale.optim.guarded import GuardedOptimizer
from lightning_scale.optim.kernels.eight_bit.moment import Moment
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.moments import EIGHT_BIT_FROM, moments, new_moment


class EightBitOptimizer(GuardedOptimizer):
    """Base of the optimizers with 8-bit moments; see `lightning_scale.optim.moments` for what the state holds."""

    _converts: ClassVar[bool] = False
    _eight_bit_from: ClassVar[int] = EIGHT_BIT_FROM

    def _new_moments(self, weight: Tensor, layout: Layout, *keys: str) -> dict[str, Tensor]:
        """The state of a local tensor's moments, zero."""
        state: dict[str, Tensor] = {}
        for key in keys:
            state |= new_moment(key, weight, layout.layers, layout.segments, self._eight_bit_from)
        return state

    def _moments(self, g: Gathered, key: str) -> list[Moment]:
        """One kind of moment of every segment."""
        return moments(key, g.layout, g.states, _compute_dtype(g), self._eight_bit_from)

    @staticmethod
    def _common(g: Gathered) -> dict[str, Any]:
        """The fields that every bucket has, but for the layers' weight decay."""
        lr, device, compute = g.group["lr"], g.params[0].device, _compute_dtype(g)
        return {
            "layout": g.layout,
            "params": g.params,
            "weights": g.weights,
            "grads": g.grads,
            "compute": compute,
            "maximize": g.group["maximize"],
            "way": g.way,
            # Filled on the device, where a number would otherwise be brought by a copy that the host waits for.
            "lr": lr.to(device, compute)
            if isinstance(lr, Tensor)
            else torch.full((), lr, dtype=compute, device=device),
        }


def new_step(weight: Tensor) -> Tensor:
    """A parameter's step count, 0."""
    return torch.zeros((), dtype=torch.float32, device=weight.device)


def _compute_dtype(g: Gathered) -> torch.dtype:
    return torch.promote_types(g.params[0].dtype, torch.float32)
