"""From a local tensor's state to pieces of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_scale.optim.by_name.kinds import STEP, kinds
from lightning_scale.optim.kernels.eight_bit.moment import CodedMoment
from lightning_scale.optim.layout import Layout


@dataclass(frozen=True)
class Piece:
    """What one rank holds of a layer's state: a run of its elements.

    Args:
        start: The first one, counted in the layer, row-major.
        length: How many.
        values: 1-D of that length, on the CPU: moments, master weights; in 8 bits their codes.
        scales: Of the values in 8 bits, by the same key: float32, of each block that the run has elements of.
        numbers: What has no elements: the step count.
    """

    start: int
    length: int
    values: dict[str, Tensor]
    scales: dict[str, Tensor]
    numbers: dict[str, Tensor]


def pieces(layout: Layout, state: Mapping[str, Tensor], eight_bit_from: int) -> list[tuple[str, Piece]]:
    """A local tensor's state, by the names of the layers that have elements in it; copies.

    Args:
        layout: Of this one tensor.
        state: Its state.
        eight_bit_from: From which size of a layer on its moments are in 8 bits.
    """
    held = kinds(layout, dict(state), eight_bit_from)
    numbers = {STEP: _kept(state[STEP])} if STEP in state else {}
    found = []
    for i, segment in enumerate(layout.segments):
        values: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for key, parts in held.items():
            part = parts[i]
            if isinstance(part, CodedMoment):
                values[key], scales[key] = _kept(part.codes), _kept(part.absmax)
            else:
                values[key] = _kept(part.values)
        piece = Piece(segment.layer_start, segment.length, values, scales, numbers)
        found.append((layout.layers[segment.layer].name, piece))
    return found


def _kept(t: Tensor) -> Tensor:
    return t.detach().cpu().clone()
