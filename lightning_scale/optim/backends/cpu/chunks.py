"""Which elements belong to which layer, as chunks: what a thread takes at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from lightning_scale.optim.backends.cut import cut
from lightning_scale.optim.layout import Layout

CHUNK = 1 << 15
"""Elements of a chunk. Layers are cut at multiples of it, wherever their elements live, so that sums add the same numbers."""
GROUP = 1 << 20
"""Elements of small layers that are stepped together, both passes one after the other: what a cache holds."""

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Whole layers that take both passes before the next ones begin; all in 8 bits, or none.

    Args:
        begin: The first chunk.
        end: The one after the last.
        layers: Which layers, 1-D.
        quantized: Whether their moments are in 8 bits.
    """

    begin: int
    end: int
    layers: Column
    quantized: bool


@dataclass(frozen=True)
class Chunks:
    """The chunks of a layout, in order of their groups: 1-D columns of C numbers each.

    Args:
        columns: As kernels take them: the layer; the local tensor; where in it the chunk begins and ends; where in the moment's
            tensor it begins; where in the memory that keeps updates; its first block's number among the tensor's scales; and how
            many elements of that block come before it.
        groups: In order.
        scratch: Elements of the memory that keeps updates.
        used: Local tensors that have chunks, 1-D.
        sums: [2, C] float64: what kernels sum over each chunk.
    """

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    scratch: int
    used: Column
    sums: NDArray[np.float64]

    @property
    def layer(self) -> Column:
        return self.columns[0]

    @property
    def at(self) -> Column:
        return self.columns[4]

    @property
    def place(self) -> Column:
        return self.columns[5]

    @property
    def count(self) -> int:
        return len(self.columns[0])


def chunks_of(layout: Layout, quantized: tuple[bool, ...]) -> Chunks:
    """The chunks of a layout, kept with it.

    Args:
        layout: Where the elements live.
        quantized: Of each layer, whether its moments are in 8 bits.
    """
    return layout.once(("cpu chunks", quantized), lambda: _cut(layout, quantized))


def _cut(layout: Layout, quantized: tuple[bool, ...]) -> Chunks:
    chunks = [chunk for chunk in cut(layout, quantized, CHUNK) if chunk.length]
    whole = layout.all_reduce is None
    rows: list[tuple[int, ...]] = []
    groups: list[Group] = []
    first = held = scratch = 0
    for chunk, following in zip_longest(chunks, chunks[1:]):
        begin, end = chunk.start, chunk.start + chunk.length
        rows.append((chunk.layer, chunk.tensor, begin, end, chunk.at, held, chunk.block, chunk.lead))
        held += chunk.length
        scratch = max(scratch, held)
        # Where other ranks hold a share of the layers, the second pass of all of them comes after the first of all.
        full = whole and held >= GROUP and following is not None and following.layer != chunk.layer
        if following is None or following.quantized != chunk.quantized or full:
            groups.append(Group(first, len(rows), np.unique([row[0] for row in rows[first:]]), chunk.quantized))
            first, held = len(rows), 0 if whole else held
    table = np.array(rows, np.int64).reshape(-1, 8).T
    columns = tuple(np.ascontiguousarray(column) for column in table)
    return Chunks(columns, tuple(groups), scratch, np.unique(columns[1]), np.zeros((2, len(rows))))
