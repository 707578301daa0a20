"""The one float32 buffer that updates wait in between the two passes of a layer."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import WIDTH

_held: list[Tensor] = []


def update_rows(rows: int) -> Tensor:
    """[rows, WIDTH] float32 of any content, the same memory again at every call; it grows to the largest asked for.

    Kept between steps: new memory would be cleared by the system at every step, which takes as long as writing it.
    """
    if not _held or _held[0].shape[0] < rows:
        _held[:] = [torch.empty(rows, WIDTH, dtype=torch.float32, device="cpu")]
    return _held[0][:rows]
