"""A local tensor's state, kind by kind and segment by segment."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import Moment, PlainMoment
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.moments import CODES, absmax_key, moments, small_key

STEP = "step"


def kinds(layout: Layout, state: dict[str, Tensor], eight_bit_from: int) -> dict[str, list[Moment]]:
    """Of each kind of state that has elements, what each segment holds, as views.

    Args:
        layout: Of this one tensor.
        state: Its state: tensors of its own size, moments as `lightning_scale.optim.moments` keeps them, and ``step``.
        eight_bit_from: From which size of a layer on its moments are in 8 bits.
    """
    beside = {STEP} | {of(key) for key in CODES for of in (absmax_key, small_key)}
    found: dict[str, list[Moment]] = {}
    for key in state.keys() - beside:
        if state[key].dtype == torch.uint8:
            found[key] = moments(key, layout, [state], torch.float32, eight_bit_from)
        else:
            if not state[key].is_contiguous():
                state[key] = state[key].contiguous()
            flat = state[key].view(-1)
            found[key] = [PlainMoment(flat[s.tensor_start : s.tensor_start + s.length]) for s in layout.segments]
    return dict(sorted(found.items()))
