"""‖w‖ and ‖g‖ of every layer from one read of both."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.dtypes import called
from lightning_scale.optim.kernels.compiled.first import UpdateBucket, layout_plan
from lightning_scale.optim.kernels.compiled.programs import Program
from lightning_scale.optim.kernels.compiled.programs import Run as Compiled
from lightning_scale.optim.kernels.compiled.rows import WIDTH, rows_of
from lightning_scale.optim.kernels.compiled.sums import layer_squares


def look(bucket: UpdateBucket, run_program: Compiled, grid: bool = False) -> Tensor:
    """[2, L] float64: ‖w‖ and ‖g‖, summed in float64, which costs nothing here."""
    rows = layout_plan(bucket, grid)
    sums: list[list[Tensor]] = [[], []]
    for run in rows.whole:
        here = run_program(*(rows_of(t[run.tensor], run) for t in (bucket.weights, bucket.grads)))
        for kept, row_sums in zip(sums, here, strict=True):
            kept.append(row_sums)
    for batch in rows.batches:
        parts = [buffers.elements(t, batch) for t in (bucket.weights, bucket.grads)]
        here = run_program(*(buffers.padded(p, batch, 0.0) for p in parts))
        count = sum(run.rows for run in batch)
        for kept, row_sums in zip(sums, here, strict=True):
            kept.append(row_sums[:count])
    return torch.stack([layer_squares(rows, len(bucket.layout.layers), s) for s in sums]).sqrt()


@cache
def look_program(types: tuple[torch.dtype, torch.dtype]) -> Program:
    """The program that `look` runs."""
    return Program(called("look", types), _squares, ((WIDTH, types[0]), (WIDTH, types[1])))


def _squares(w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    w, g = w.double(), g.double()
    return (w * w).sum(1), (g * g).sum(1)
