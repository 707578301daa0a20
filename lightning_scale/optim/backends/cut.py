"""Runs of layers, cut into chunks: what a thread or a program takes at a time, on CPUs and on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from lightning_scale.optim.layout import Layout
from lightning_scale.optim.quantization import BLOCK, block_count

GROUP = 1 << 21
"""Elements of small layers that are stepped together on a CPU, both passes one after the other: what a cache holds."""


class Chunk(NamedTuple):
    """Some elements of one run; all numbers count elements, but for ``block``."""

    quantized: bool
    """Whether the layer's moments are in 8 bits."""
    layer: int
    layer_start: int
    """The first element, counted in the layer."""
    tensor: int
    start: int
    """The first element, counted in the local tensor."""
    length: int
    at: int
    """The first element's place in the tensor that holds the moment."""
    block: int
    """The number of the first block among the tensor's scales."""

    @property
    def lead(self) -> int:
        """Elements of the first block that come before the chunk."""
        return self.layer_start % BLOCK


def cut(layout: Layout, quantized: Sequence[bool], size: int) -> list[Chunk]:
    """A layout's runs in chunks: layers in 8 bits first, then the others, each in the order of the layers' elements.

    Layers are cut at multiples of ``size`` of their own elements, wherever these live, so that sums over chunks add the same
    numbers in every layout, and no block is cut. An empty run is a chunk without elements.

    Args:
        layout: Where the elements live.
        quantized: Of each layer, whether its moments are in 8 bits.
        size: Elements of a chunk, at most: a multiple of a block's.
    """
    blocks, smalls = [0] * len(layout.tensor_numels), [0] * len(layout.tensor_numels)
    mixed = {run.tensor for run in layout.runs if quantized[run.layer]}
    found: list[Chunk] = []
    for run in layout.runs:
        own = quantized[run.layer]
        # A tensor of small layers alone keeps their moments where its own elements are; beside codes they have their own.
        at = smalls[run.tensor] if not own and run.tensor in mixed else run.tensor_start
        first = -run.layer_start % size or size
        edges = [0, *range(first, run.length, size), run.length]
        for a, b in pairwise(edges):
            start = run.layer_start + a
            block = blocks[run.tensor] + start // BLOCK - run.layer_start // BLOCK
            found.append(Chunk(own, run.layer, start, run.tensor, run.tensor_start + a, b - a, at + a, block))
        if own:
            blocks[run.tensor] += block_count(run.layer_start, run.length)
        else:
            smalls[run.tensor] += run.length
    return sorted(found, key=lambda chunk: (not chunk.quantized, chunk.layer, chunk.layer_start))
