"""The chunks of an 8-bit bucket: runs of elements of one segment that no block of the grid is cut by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.codec import BLOCK, block_count
from lightning_scale.optim.layout import LayerInfo, Layout, Segment

# Elements that one program takes, at most; whole blocks. Small, so that there are many more programs than a device runs at
# one time: then the last ones to end are a small part of all.
CHUNK = 1 << 14


@dataclass(frozen=True)
class CodedChunks:
    """C chunks: first those of layers in 8 bits, then those of small layers, each in the order of the layers; L layers."""

    table: Tensor
    """[C, 6] int64: the local tensor; where in it the grid's row begins that holds the chunk's first element; which element
    of this row is the first, and which the first beyond; the layer; where in the state the scales (in 8 bits) or the
    row's elements (small) begin."""
    coded: int
    """How many are in 8 bits."""
    begin: Tensor
    """[L] int32: each layer's first chunk."""
    end: Tensor
    """[L] int32: the one after its last."""
    aligned: tuple[bool, bool]
    """Whether all rows, in 8 bits and small, begin at a multiple of four elements."""

    @property
    def count(self) -> int:
        return self.table.shape[0]


def coded_chunks(layout: Layout, coded: Callable[[LayerInfo], bool], device: torch.device) -> CodedChunks:
    """The chunks of a layout, kept with it.

    Args:
        layout: What to cut.
        coded: Which layers are in 8 bits.
        device: Where the chunks are to be.
    """
    kinds = tuple(coded(layer) for layer in layout.layers)
    key = ("coded chunks", kinds, CHUNK, device)
    if key not in layout.cache:
        layout.cache[key] = _cut(layout, kinds, device)
    chunks: CodedChunks = layout.cache[key]
    return chunks


def _cut(layout: Layout, coded: tuple[bool, ...], device: torch.device) -> CodedChunks:
    rows: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])  # in 8 bits, small
    scales, smalls = [0] * len(layout.tensor_numels), [0] * len(layout.tensor_numels)
    mixed = {s.tensor for s in layout.segments if coded[s.layer]}
    for s in layout.segments:
        if coded[s.layer]:
            rows[0].extend(_on_the_grid(s, scales[s.tensor]))
            scales[s.tensor] += block_count(s.layer_start, s.length)
        else:
            # A tensor of small layers alone keeps their elements where its own are.
            rows[1].extend(_plain(s, smalls[s.tensor] if s.tensor in mixed else s.tensor_start))
            smalls[s.tensor] += s.length
    for kind in rows:
        kind.sort(key=lambda row: (row[4], *row))
    table = [*rows[0], *rows[1]]
    begin, end = [0] * len(layout.layers), [0] * len(layout.layers)
    for number, row in enumerate(table):
        layer = row[4]
        begin[layer] = number if end[layer] == 0 else begin[layer]
        end[layer] = number + 1
    return CodedChunks(
        table=torch.tensor(table, dtype=torch.int64, device="cpu").view(-1, 6).to(device),
        coded=len(rows[0]),
        begin=torch.tensor(begin, dtype=torch.int32, device="cpu").to(device),
        end=torch.tensor(end, dtype=torch.int32, device="cpu").to(device),
        aligned=(
            all(row[1] % 4 == 0 for row in rows[0]),
            all(row[1] % 4 == 0 and row[5] % 4 == 0 for row in rows[1]),
        ),
    )


def _on_the_grid(s: Segment, scales: int) -> Iterator[tuple[int, ...]]:
    """Cut at multiples of `CHUNK` of the layer's elements."""
    offset = 0
    while offset < s.length:
        start = s.layer_start + offset
        length = min(CHUNK - start % CHUNK, s.length - offset)
        before = start % BLOCK
        scale = scales + start // BLOCK - s.layer_start // BLOCK
        yield s.tensor, s.tensor_start + offset - before, before, before + length, s.layer, scale
        offset += length


def _plain(s: Segment, place: int) -> Iterator[tuple[int, ...]]:
    for offset in range(0, s.length, CHUNK):
        length = min(CHUNK, s.length - offset)
        yield s.tensor, s.tensor_start + offset, 0, length, s.layer, place + offset
