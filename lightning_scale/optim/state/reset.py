"""Starting an optimizer's memory again, ours or torch's, whole or in part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.state.moments import CODES, absmax_key, small_key

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


def reset_bias_correction(optimizer: Optimizer) -> None:
    """Set every parameter's step count to 0 (as BERT's second stage does); moments are kept."""
    for state in _states(optimizer):
        step = state.get("step")
        if isinstance(step, Tensor):
            step.zero_()
        elif step is not None:
            state["step"] = 0
        if isinstance(by_layer := state.get("layer_step"), Tensor):  # ZeRO's, where layers have missed steps
            by_layer.zero_()


def reset_moments(optimizer: Optimizer) -> None:
    """Set first and second moments, or the momentum, to zero."""
    for state in _states(optimizer):
        for key in MOMENTS:
            moment = state.get(key)
            if isinstance(moment, Tensor):
                moment.fill_(CODES[key].zero if moment.dtype == torch.uint8 and absmax_key(key) in state else 0)
            for beside in (absmax_key(key), small_key(key)):
                if isinstance(state.get(beside), Tensor):
                    state[beside].zero_()


def _states(optimizer: Optimizer) -> Iterator[dict[str, Any]]:
    # Not through the groups, which ZeRO-3 keeps empty between steps.
    return iter([state for state in optimizer.state.values() if isinstance(state, dict)])
