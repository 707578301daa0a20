"""The float32 buffers that updates wait in between the two passes of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import WIDTH

_held: dict[int, Tensor] = {}


def update_rows(rows: int, place: int) -> Tensor:
    """[rows, WIDTH] float32 of any content, of one place the same memory again at every call; it grows to the largest asked
    for.

    Kept between steps: new memory would be cleared by the system at every step, which takes as long as writing it.
    """
    if place not in _held or _held[place].shape[0] < rows:
        _held[place] = torch.empty(rows, WIDTH, dtype=torch.float32, device="cpu")
    return _held[place][:rows]
