"""What the four 8-bit optimizers share: their state, and buckets of tensors as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Way
from lightning_scale.optim.base import GuardedOptimizer
from lightning_scale.optim.dtensor import check_rows, is_sharded
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.state.moments import EIGHT_BIT_FROM, Moment, moments, new_moment, whole_moment
from lightning_scale.optim.state.sharded_moments import loaded, saved
from lightning_scale.optim.step_plan import Gathered


class EightBitOptimizer(GuardedOptimizer):
    """Base of the optimizers with 8-bit moments; see `lightning_scale.optim.state.moments` for what the state holds."""

    _converts: ClassVar[bool] = False
    _eight_bit_from: ClassVar[int] = EIGHT_BIT_FROM

    def _new_moments(self, weight: Tensor, layout: Layout, *keys: str) -> dict[str, Tensor]:
        """The state of a local tensor's moments, zero."""
        state: dict[str, Tensor] = {}
        for key in keys:
            state |= new_moment(key, weight, layout.layers, layout.segments, self._eight_bit_from)
        return state

    def _moments(self, g: Gathered, key: str) -> list[Moment]:
        """One kind of moment of every segment; for the Triton kernels there is `_common`'s ``whole``."""
        return [] if g.way is Way.TRITON else moments(key, g.layout, g.states, _compute_dtype(g), self._eight_bit_from)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for p in group["params"]:
            check_rows(type(self).__name__, p)

    def state_dict(self) -> dict[str, Any]:
        """torch's, with ``skipped_steps`` beside ``state`` and ``param_groups``.

        Of sharded parameters (FSDP2) also in the first group, for torch.distributed.checkpoint keeps only these two; and
        their moments in a form that any number of ranks can load.
        """
        found = super().state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        if any(map(is_sharded, params)):
            numbers = [number for group in found["param_groups"] for number in group["params"]]
            state = found["state"]
            saved_ones = {n: saved(p, state[n]) for n, p in zip(numbers, params, strict=True) if n in state}
            found["state"] = {**state, **saved_ones}
        return found

    def _loaded_state(self, p: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        return loaded(p, state)

    def _compiles(self, group: dict[str, Any], p: Tensor) -> bool:
        """Small parameters, whose moments are not in 8 bits, go the plain way."""
        return p.numel() >= self._eight_bit_from and super()._compiles(group, p)

    def _common(self, g: Gathered, *keys: str) -> dict[str, Any]:
        """The fields that every bucket has, but for the layers' weight decay.

        Args:
            g: What was gathered.
            keys: The moments that its steps use.
        """
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
            "whole": {
                k: whole_moment(k, g.layout, g.states, compute, self._eight_bit_from)
                for k in keys
                if g.way is Way.TRITON
            },
        }


def new_step(weight: Tensor) -> Tensor:
    """A parameter's step count, 0."""
    return torch.zeros((), dtype=torch.float32, device=weight.device)


def _compute_dtype(g: Gathered) -> torch.dtype:
    return torch.promote_types(g.params[0].dtype, torch.float32)
