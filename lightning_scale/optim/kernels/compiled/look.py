"""‖w‖ and ‖g‖ of every layer from one read of both."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.dtypes import called, variant
from lightning_scale.optim.kernels.compiled.first import UpdateBucket, layout_plan
from lightning_scale.optim.kernels.compiled.programs import Program, load
from lightning_scale.optim.kernels.compiled.rows import WIDTH, rows_of
from lightning_scale.optim.kernels.compiled.sums import layer_squares


def look(bucket: UpdateBucket) -> Tensor | None:
    """[2, L] float64: this rank's own ‖w‖ and ‖g‖ of each layer, summed in float64, which costs nothing here.

    Args:
        bucket: Contiguous CPU tensors, each kind of one dtype.

    Returns:
        ``None`` where the kernel cannot be compiled.
    """
    runs = load([_program(variant(bucket.weights, bucket.grads))])
    if runs is None:
        return None
    rows = layout_plan(bucket)
    sums: list[list[Tensor]] = []
    for run in rows.whole:
        sums.append(runs[0](*(rows_of(t[run.tensor], run) for t in (bucket.weights, bucket.grads))))
    for batch in rows.batches:
        parts = [buffers.elements(t, batch) for t in (bucket.weights, bucket.grads)]
        here = runs[0](*(buffers.padded(p, batch, 0.0) for p in parts))
        count = sum(run.rows for run in batch)
        sums.append([row_sums[:count] for row_sums in here])
    return layer_squares(rows, len(bucket.layout.layers), sums).sqrt()


@cache
def _program(types: tuple[torch.dtype, torch.dtype]) -> Program:
    return Program(called("look", types), _squares, ((WIDTH, types[0]), (WIDTH, types[1])))


def _squares(w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    w, g = w.double(), g.double()
    return (w * w).sum(1), (g * g).sum(1)
