"""‖w‖ and ‖g‖ of every layer from one read of both."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.dtypes import called, variant
from lightning_scale.optim.kernels.compiled.first import UpdateBucket, layout_plan
from lightning_scale.optim.kernels.compiled.programs import Program, load
from lightning_scale.optim.kernels.compiled.rows import WIDTH, rows_of
from lightning_scale.optim.kernels.compiled.sums import layer_squares, make_sure


def look(bucket: UpdateBucket, exact: bool) -> Tensor | None:
    """[2, L] float64: this rank's own ‖w‖ and ‖g‖ of each layer.

    Args:
        bucket: Contiguous CPU tensors, each kind of one dtype.
        exact: Sum in float64, which takes half as long again; else rows in float32, and those in float64.

    Returns:
        ``None`` where the kernel cannot be compiled.
    """
    runs = load([_program(variant(bucket.weights, bucket.grads), exact)])
    if runs is None:
        return None
    rows = layout_plan(bucket)
    ready = [[rows_of(t[run.tensor], run) for t in (bucket.weights, bucket.grads)] for run in rows.whole]
    sums = [runs[0](*operands) for operands in ready]
    for batch in rows.batches:
        parts = [buffers.elements(t, batch) for t in (bucket.weights, bucket.grads)]
        sums.append(runs[0](*(buffers.padded(p, batch, 0.0) for p in parts)))
    squares = layer_squares(rows, len(bucket.layout.layers), sums)
    for own, tensors in zip(squares, (bucket.weights, bucket.grads), strict=True):
        make_sure(own, rows, partial(buffers.layer_elements, tensors, rows))
    return torch.from_numpy(np.sqrt(squares))


@cache
def _program(types: tuple[torch.dtype, torch.dtype], exact: bool) -> Program:
    operands = ((WIDTH, types[0]), (WIDTH, types[1]))
    return Program(called("look-exactly" if exact else "look", types), _in_float64 if exact else _in_float32, operands)


def _in_float64(w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return _squares(w.double(), g.double())


def _in_float32(w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return _squares(w.float(), g.float())


def _squares(w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    return (w * w).sum(1), (g * g).sum(1)
