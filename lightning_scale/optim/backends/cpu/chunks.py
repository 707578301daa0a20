"""Which elements belong to which layer, as chunks: what a thread takes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_scale.optim.layout import Layout, Run
from lightning_scale.optim.quantization import BLOCK, block_count

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
        sums: [2, C] float64: what kernels sum over each chunk.
    """

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    scratch: int
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
    blocks, smalls = [0] * len(layout.tensor_numels), [0] * len(layout.tensor_numels)
    mixed = {run.tensor for run in layout.runs if quantized[run.layer]}
    placed = []
    for run in layout.runs:
        # A tensor of small layers alone keeps their moments where its own elements are.
        at = smalls[run.tensor] if not quantized[run.layer] and run.tensor in mixed else run.tensor_start
        placed.append((not quantized[run.layer], run.layer, run.layer_start, run, at, blocks[run.tensor]))
        if quantized[run.layer]:
            blocks[run.tensor] += block_count(run.layer_start, run.length)
        else:
            smalls[run.tensor] += run.length
    placed.sort(key=lambda entry: entry[:3])
    rows: list[tuple[int, ...]] = []
    groups: list[Group] = []
    first = held = scratch = 0
    for i, (plain, layer, _, run, at, block) in enumerate(placed):
        rows += _chunks(run, at, held, block)
        held += run.length
        scratch = max(scratch, held)
        following = placed[i + 1][:2] if i + 1 < len(placed) else None
        # Where other ranks hold a share of the layers, the second pass of all of them comes after the first of all.
        full = layout.all_reduce is None and held >= GROUP and (following is None or following[1] != layer)
        if following is None or following[0] != plain or full:
            if len(rows) > first:
                layers = np.unique([row[0] for row in rows[first:]])
                groups.append(Group(first, len(rows), layers, not plain))
            first = len(rows)
            held = 0 if layout.all_reduce is None else held
    table = np.array(rows, np.int64).reshape(-1, 8).T
    columns = tuple(np.ascontiguousarray(column) for column in table)
    return Chunks(columns, tuple(groups), scratch, np.zeros((2, len(rows))))


def _chunks(run: Run, at: int, place: int, block: int) -> Iterator[tuple[int, ...]]:
    """A run's chunks, as the columns have them."""
    edges = [0, *range(CHUNK - run.layer_start % CHUNK, run.length, CHUNK), run.length]
    for a, b in pairwise(edges):
        if b > a:
            start = run.layer_start + a
            number = block + start // BLOCK - run.layer_start // BLOCK
            begin = run.tensor_start + a
            yield run.layer, run.tensor, begin, begin + b - a, at + a, place + a, number, start % BLOCK
