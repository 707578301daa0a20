"""Segments as rows of 256 elements: long ones where they lie, short ones and rests in a padded buffer.

A plan holds places only, no tensors, and serves every step of a layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from torch import Tensor

from lightning_scale.optim.layout import Layout, Segment

WIDTH = 256
# Rows of one call, 2^22 elements. With fewer, calls count: LAMB took 4 % longer with 2^20, LARS 5 %.
CHUNK_ROWS = 1 << 14
# Of 8-bit states: their kernels hold both moments of a call in float32, 8 bytes an element.
CODED_CHUNK_ROWS = 1 << 11
# Rows of a padded buffer.
BATCH_ROWS = 1 << 11
# A run of fewer rows is copied into the padded buffer with others: a call of its own would take longer.
FEWEST_ROWS = 64


@dataclass(frozen=True)
class Run:
    """A run of elements of one segment and its rows in the plan: whole rows, or at most `FEWEST_ROWS` padded ones."""

    segment: int
    layer: int
    tensor: int
    start: int
    """First element, in the local tensor."""
    offset: int
    """First element, in the segment."""
    length: int
    row: int
    """First row."""
    rows: int
    block: int
    """First of the segment's blocks (see `codec.blocks`); of parts that begin with one."""
    lead: int
    """Elements of padding before the first: a block's that lie elsewhere."""


@dataclass(frozen=True)
class Plan:
    """The rows of some segments: those of `whole` first, then those of `padded`."""

    whole: tuple[Run, ...]
    """Of at most one call's rows, contiguous where they lie."""
    padded: tuple[Run, ...]
    """Lie one after another in the buffer."""
    rows: int
    layers: tuple[int, ...]
    """The layers that have rows here."""

    @cached_property
    def batches(self) -> tuple[tuple[Run, ...], ...]:
        """The padded runs, as many as one call takes."""
        found: list[list[Run]] = []
        for run in self.padded:
            if not found or run.row + run.rows - found[-1][0].row > BATCH_ROWS:
                found.append([])
            found[-1].append(run)
        return tuple(tuple(batch) for batch in found)


def plan(layout: Layout, segments: Sequence[int], grid: bool = False) -> Plan:
    """The rows of some of a layout's segments.

    Args:
        layout: Where the elements live.
        segments: Which ones, by their place in ``layout.segments``.
        grid: Rows are the blocks of the layers' own grids (8-bit states); else they begin with the segment.
    """
    whole: list[Run] = []
    padded: list[Run] = []
    for number in segments:
        segment = layout.segments[number]
        for run in _runs(number, segment, grid):
            (whole if run.length == run.rows * WIDTH and run.rows >= FEWEST_ROWS else padded).append(run)
    pieces = [piece for run in whole for piece in _chunks(run, CODED_CHUNK_ROWS if grid else CHUNK_ROWS)]
    row, placed = 0, []
    for run in (*pieces, *padded):
        placed.append(replace(run, row=row))
        row += run.rows
    layers = dict.fromkeys(run.layer for run in placed)
    return Plan(tuple(placed[: len(pieces)]), tuple(placed[len(pieces) :]), row, tuple(layers))


def whole_layer(number: int, numel: int) -> Run:
    """A layer that is a tensor of its own and the segment of the same number, of whole rows, as one run."""
    return Run(number, number, number, start=0, offset=0, length=numel, row=0, rows=numel // WIDTH, block=0, lead=0)


def _runs(number: int, segment: Segment, grid: bool) -> Iterator[Run]:
    """A segment's runs: what is left of its first block, whole rows, and the rest; one run where there are few."""
    lead = segment.layer_start % WIDTH if grid else 0
    rows = -(-(lead + segment.length) // WIDTH)
    if not segment.length:
        return
    if rows <= FEWEST_ROWS:
        cuts = [0, segment.length]
    else:
        head = WIDTH - lead if lead else 0
        body = (segment.length - head) // WIDTH * WIDTH
        cuts = sorted({0, head, head + body, segment.length})
    for begin, end in pairwise(cuts):
        before = lead if begin == 0 else 0
        yield Run(
            segment=number,
            layer=segment.layer,
            tensor=segment.tensor,
            start=segment.tensor_start + begin,
            offset=begin,
            length=end - begin,
            row=0,
            rows=-(-(before + end - begin) // WIDTH),
            block=(lead + begin) // WIDTH,
            lead=before,
        )


def _chunks(run: Run, most: int) -> Iterator[Run]:
    """Whole rows in calls of about the same size; no call has a single row, for which nothing is compiled."""
    calls = -(-run.rows // most)
    edges = [run.rows * i // calls for i in range(calls + 1)]
    for a, b in pairwise(edges):
        yield replace(
            run,
            start=run.start + a * WIDTH,
            offset=run.offset + a * WIDTH,
            length=(b - a) * WIDTH,
            rows=b - a,
            block=run.block + a,
        )


def rows_of(tensor: Tensor, run: Run) -> Tensor:
    """A run of whole rows of a contiguous local tensor, as a view."""
    if run.length == tensor.numel():
        return tensor.view(run.rows, WIDTH)
    return tensor.view(-1)[run.start : run.start + run.length].view(run.rows, WIDTH)
