"""Segments of parameters inside flat tensors: pure arithmetic, nothing of DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_scale.optim.layout import LayerInfo, Layout, Run


@dataclass(frozen=True)
class Flat:
    """A flat tensor that the optimizer steps in place of parameters.

    Args:
        tensor: This rank's, 1-D.
        group: The parameter group that it belongs to.
        layout: Which layers' elements lie in it.
        loaded: Whether it lies in memory between steps.
    """

    tensor: Tensor
    group: int
    layout: Layout
    loaded: bool = True


def slice_layout(
    layers: Sequence[LayerInfo], starts: Sequence[int], begin: int, length: int, all_reduce: Callable[[Tensor], None]
) -> Layout:
    """One rank's slice of a long flat tensor that layers follow one another in (ZeRO-1 and 2).

    Args:
        layers: The layers, in the order of the group's parameters.
        starts: Where in the long tensor each begins.
        begin: Where the slice begins.
        length: How long it is.
        all_reduce: Sums over the ranks with the other slices.
    """
    runs = []
    for number, (layer, start) in enumerate(zip(layers, starts, strict=True)):
        first, last = max(start, begin), min(start + layer.numel, begin + length)
        if first < last:
            runs.append(Run(number, 0, first - begin, first - start, last - first))
    runs.sort(key=lambda s: s.tensor_start)
    return Layout(tuple(layers), tuple(runs), (length,), all_reduce)


def shard_layout(
    layers: Sequence[LayerInfo], shares: Sequence[int], rank: int, all_reduce: Callable[[Tensor], None]
) -> Layout:
    """Equal shares of each layer, one after the other (ZeRO-3); what the last ranks' shares have too much is padding.

    Args:
        layers: The layers, in the order in which their shares follow one another.
        shares: Elements of each layer's share, padding included.
        rank: The rank whose shares they are.
        all_reduce: Sums over the ranks with the other shares.
    """
    runs, offset = [], 0
    for number, (layer, share) in enumerate(zip(layers, shares, strict=True)):
        held = min(share, layer.numel - rank * share)
        if held > 0:
            runs.append(Run(number, 0, offset, rank * share, held))
        offset += share
    return Layout(tuple(layers), tuple(runs), (offset,), all_reduce)


def shares_of(layout: Layout, pieces: Sequence[Tensor]) -> list[list[Tensor]]:
    """Each layer's elements, as views.

    Args:
        layout: Of one flat tensor.
        pieces: 1-D tensors that follow one another in its place, cut anywhere.
    """
    found: list[list[Tensor]] = [[] for _ in layout.layers]
    begin = 0
    for piece in pieces:
        end = begin + piece.numel()
        for segment in layout.runs:
            first = max(segment.tensor_start, begin)
            last = min(segment.tensor_start + segment.length, end)
            if first < last:
                found[segment.layer].append(piece.view(-1)[first - begin : last - begin])
        begin = end
    return found


def pieces_layout(pieces: Sequence[Tensor], all_reduce: Callable[[Tensor], None] | None) -> Layout:
    """A layout of tensors whose layers do not matter: all of their elements, as if they were one layer."""
    numels = tuple(t.numel() for t in pieces)
    everything = LayerInfo("", sum(numels), 1)
    return Layout((everything,), tuple(Run(0, i, 0, 0, n) for i, n in enumerate(numels)), numels, all_reduce)
