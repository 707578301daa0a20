"""Whole layers one after another, each with both passes of its step, and as little as can be between the two.

There every small operation finds the caches empty: what `first` does for any number of layers at once takes 0.5 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import LayerNorms
from lightning_scale.optim.backends.ratios import ratio_by_numpy
from lightning_scale.optim.kernels.compiled import rows
from lightning_scale.optim.kernels.compiled.buffers import alike
from lightning_scale.optim.kernels.compiled.first import Begin, First, UpdateBucket, take_rows_off
from lightning_scale.optim.kernels.compiled.scratch import update_rows
from lightning_scale.optim.kernels.compiled.sums import row_square
from lightning_scale.optim.layout import Layout


def steps_alone(numel: int) -> bool:
    """Whether a whole layer of so many elements lies in whole rows, enough of them for calls of its own."""
    return numel % rows.WIDTH == 0 and numel >= rows.FEWEST_ROWS * rows.WIDTH


def all_step_alone(layout: Layout) -> bool:
    """Whether all of a part's layers do, none with a share on another rank."""
    whole = layout.whole and layout.all_reduce is None and bool(layout.layers)
    return whole and all(steps_alone(layer.numel) for layer in layout.layers)


def one_by_one(bucket: UpdateBucket, first: First) -> Begin:
    """Make ready to step layer after layer, where the update's norm is what the weights' is divided by.

    Args:
        bucket: Contiguous tensors, each a layer that `steps_alone`, no part of any on another rank.
        first: The first pass.
    """
    most = max(layer.numel for layer in bucket.layout.layers) // rows.WIDTH
    updates = update_rows(most, bucket.place)
    # One for all layers of the same numbers, and gone with the step: of large layers they are large.
    table = cache(partial(alike, rows=most))
    ready = []
    for i, layer in enumerate(bucket.layout.layers):
        run = rows.whole_layer(i, layer.numel)
        operands = [rows.rows_of(tensors[i], run) for tensors in (bucket.weights, bucket.grads)]
        operands += [t for state in first.states for t in state.rows(run)]
        ready.append((*operands, updates[: run.rows], table(first.numbers(i, i))[: run.rows], *first.constants))
    return lambda: _step(bucket, first, len(first.states) + 2, ready)


def _step(bucket: UpdateBucket, first: First, update_at: int, ready: Sequence[tuple[Tensor, ...]]) -> LayerNorms:
    found = np.empty((3, len(ready)), dtype=np.float32)
    weight_norm, update_norm, ratio = found
    adapt, lr, coefficient = bucket.trust.adapt.numpy(), float(bucket.lr), getattr(bucket, "trust_coefficient", 1.0)
    for i, operands in enumerate(ready):
        weight, update = operands[0], operands[update_at]
        # One call for each pass: threads find in the second the rows that they have written in the first.
        weight_sums, update_sums = first.run(*operands)
        here = slice(i, i + 1)
        weight_norm[i] = math.sqrt(row_square(weight_sums, weight))
        update_norm[i] = math.sqrt(row_square(update_sums, update))
        norms = weight_norm[here], update_norm[here]
        ratio[here] = ratio_by_numpy(*norms, adapt[here], norms[1], bucket.trust, coefficient)
        take_rows_off(weight, update, float(ratio[i] * np.float32(lr)), first.rounds_twice)
        if bucket.params[i] is not bucket.weights[i]:
            bucket.params[i].copy_(bucket.weights[i])
    return LayerNorms(*torch.from_numpy(found).unbind())
