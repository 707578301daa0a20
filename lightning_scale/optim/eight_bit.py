"""What the four 8-bit optimizers share: state in 8 bits, and its form in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.dtensor import check_rows, is_sharded
from lightning_scale.optim.groups import patterns
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.state.moments import EIGHT_BIT_FROM, new_moment
from lightning_scale.optim.state.sharded_moments import loaded, saved


class EightBitOptimizer(OptimizerBase):
    """Base of the optimizers with 8-bit moments. `lightning_scale.optim.state.moments` says what the state holds.

    Args:
        params: As those that follow, but for the last, the float32 optimizer's.
        eight_bit_except: Patterns (``fnmatch``'s, such as ``["embed*"]``) of the names of parameters that keep float32 moments,
            whatever their size. A pattern that matches no parameter is an error.
    """

    _in_order: ClassVar[bool] = True
    _eight_bit_from: ClassVar[float] = EIGHT_BIT_FROM

    def __init__(self, params: Any, *args: Any, eight_bit_except: Sequence[str] | None = None, **kwargs: Any) -> None:
        self.eight_bit_except = patterns("eight_bit_except", eight_bit_except)
        super().__init__(params, *args, **kwargs)

    def _new_moments(self, weight: Tensor, layout: Layout, *keys: str) -> dict[str, Tensor]:
        """Return the state of a local tensor's moments before the first step, which are zero."""
        state: dict[str, Tensor] = {}
        for key in keys:
            state |= new_moment(key, weight, layout.layers, layout.runs, self._eight_bit_from)
        return state

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for p in group["params"]:
            check_rows(type(self).__name__, p)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's dict, with ``skipped_steps`` beside ``state`` and ``param_groups``.

        Where parameters are sharded (FSDP2), the count is also in the first group, for torch.distributed.checkpoint keeps only
        these two, and moments are in a form that any number of ranks can load.
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


def new_step(weight: Tensor) -> Tensor:
    """Return the step count of a parameter that has taken no step."""
    return torch.zeros((), dtype=torch.float32, device=weight.device)
