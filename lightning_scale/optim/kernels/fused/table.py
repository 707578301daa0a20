"""Where the elements lie, in a form that one launch can go through: pointers of tensors, and chunks of segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightning_scale.optim.layout import Layout

CHUNK = 1 << 15
"""Elements that one program takes, at most."""


@dataclass(frozen=True)
class Chunks:
    """Runs of elements, each inside one segment, in the order of the layers; C of them, L layers.

    One program takes one chunk, and leaves one partial sum; a layer's sums are those of its consecutive chunks.
    """

    tensor: Tensor
    """[C] int32: the local tensor."""
    start: Tensor
    """[C] int64: the first element in it."""
    length: Tensor
    """[C] int32: how many elements."""
    layer: Tensor
    """[C] int32: whose elements they are."""
    first: Tensor
    """[L + 1] int32: each layer's first chunk."""

    @property
    def count(self) -> int:
        return self.tensor.numel()


def chunk(layout: Layout, device: torch.device, size: int = CHUNK) -> Chunks:
    """Cut a layout's segments into chunks of at most ``size`` elements; empty segments give none."""
    rows = sorted(
        (segment.layer, segment.layer_start + offset, segment.tensor, segment.tensor_start + offset, length)
        for segment in layout.segments
        for offset in range(0, segment.length, size)
        for length in [min(size, segment.length - offset)]
    )
    counts = [0] * (len(layout.layers) + 1)
    for layer, *_ in rows:
        counts[layer + 1] += 1

    def column(index: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row[index] for row in rows], dtype=dtype).to(device)

    return Chunks(
        tensor=column(2, torch.int32),
        start=column(3, torch.int64),
        length=column(4, torch.int32),
        layer=column(0, torch.int32),
        first=torch.tensor(list(accumulate(counts)), dtype=torch.int32).to(device),
    )


def pointers(lists: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """[number of lists, tensors in each] int64: where each tensor begins. Empty lists give zeros."""
    width = max((len(tensors) for tensors in lists), default=0)
    rows = [[t.data_ptr() for t in tensors] or [0] * width for tensors in lists]
    table = torch.tensor(rows, dtype=torch.int64)
    # Pinned, so that the copy does not wait for the device.
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table
