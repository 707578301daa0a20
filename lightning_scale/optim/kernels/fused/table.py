"""Where the elements lie, in a form that one launch can go through: pointers of tensors, and chunks of segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
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

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the kernels take."""
        return self.tensor, self.start, self.length, self.layer


def chunks_of(layout: Layout, device: torch.device, size: int = CHUNK) -> Chunks:
    """A layout's segments, cut into chunks of at most ``size`` elements; an empty segment gives one of none."""
    key = ("chunks", device, size)
    if key not in layout.cache:
        layout.cache[key] = _cut(layout, device, size)
    chunks: Chunks = layout.cache[key]
    return chunks


def _cut(layout: Layout, device: torch.device, size: int) -> Chunks:
    rows = sorted(
        (s.layer, s.layer_start + offset, s.tensor, s.tensor_start + offset, min(size, s.length - offset))
        for s in layout.segments
        for offset in range(0, max(s.length, 1), size)
    )
    counts = [0] * (len(layout.layers) + 1)
    for layer, *_ in rows:
        counts[layer + 1] += 1

    def column(index: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row[index] for row in rows], dtype=dtype, device="cpu").to(device)

    return Chunks(
        tensor=column(2, torch.int32),
        start=column(3, torch.int64),
        length=column(4, torch.int32),
        layer=column(0, torch.int32),
        first=torch.tensor(list(accumulate(counts)), dtype=torch.int32, device="cpu").to(device),
    )


def pointers(layout: Layout, name: str, tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """[tensors] int64: where each begins. Brought to the device only where one has moved since the last step."""
    return constant(layout, name, [t.data_ptr() for t in tensors] or [0], torch.int64, device)
