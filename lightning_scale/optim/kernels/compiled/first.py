"""The two passes that LAMB and its kin share: a program leaves updates in rows, and these are taken off the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import FirstPass, Guard, LayerNorms
from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.programs import Run as Compiled
from lightning_scale.optim.kernels.compiled.rows import Plan, Run, plan, rows_of
from lightning_scale.optim.kernels.compiled.scratch import update_rows
from lightning_scale.optim.kernels.compiled.state import State
from lightning_scale.optim.kernels.compiled.sums import layer_squares, make_sure

UpdateBucket = Any
"""A `Bucket` or a `CodedBucket`: layout, params, weights, grads, lr."""
Finish = Callable[[list[float]], None]
"""Takes each layer's rate, and ends the step."""
Begin = Callable[[], FirstPass | LayerNorms]
"""A first pass, or a whole step, that is ready to run.

All its tensors are put in place for all parts of a bucket before the first one runs: after a kernel that has emptied the
caches each of these small operations takes ten times as long.
"""


@dataclass(frozen=True)
class First:
    """A compiled first pass.

    Args:
        run: (w, g, *states, u, numbers) → sums of w² and u² over the rows.
        numbers: The row's numbers for a (layer, tensor).
        states: What stands between g and u, changed in place.
        constants: Operands after the numbers that are the same in every call.
    """

    run: Compiled
    numbers: Callable[[int, int], tuple[float, ...]]
    states: Sequence[State]
    grid: bool = False
    """Rows are blocks of the layers' grids."""
    constants: Sequence[Tensor] = ()
    rounds_twice: bool = False
    """Take rate · u off the weights as the plain operations do, not in one fused operation: two walks instead of one."""


def by_ratio(bucket: UpdateBucket, first: First) -> Begin:
    """`first_pass` where the rate is the ratio times the learning rate."""
    begin = first_pass(bucket, first)

    def begun() -> FirstPass:
        norms, finish = begin()
        return FirstPass(norms, lambda ratios: finish((ratios * bucket.lr).tolist()))

    return begun


def nothing(bucket: UpdateBucket) -> Begin:
    """Of a step that is left out."""
    norms = torch.zeros(2, len(bucket.layout.layers), dtype=torch.float64)
    return lambda: FirstPass(norms, lambda ratios: None)


def skipped(guard: Guard) -> bool:
    """Whether the step is left out; on a CPU to look costs nothing."""
    return guard.finite is not None and not bool(guard.finite)


def layout_plan(bucket: UpdateBucket, grid: bool = False) -> Plan:
    """All rows of a bucket, worked out once for its layout."""
    key = ("rows", grid)
    cache = bucket.layout.cache
    if key not in cache:
        cache[key] = plan(bucket.layout, range(len(bucket.layout.segments)), grid)
    found: Plan = cache[key]
    return found


def first_pass(bucket: UpdateBucket, first: First) -> Callable[[], tuple[Tensor, Finish]]:
    """Make ready to run the program over all rows; its updates wait in scratch memory for the rates.

    Returns:
        What runs it and returns [2, L] float64, this rank's own ‖w‖ and ‖u‖ of each layer, and what takes each layer's
        rate and ends the step.
    """
    rows = layout_plan(bucket, first.grid)
    ready = [_operands(bucket, first, run) for run in rows.whole]
    return lambda: _begin(bucket, first, rows, ready)


def _operands(bucket: UpdateBucket, first: First, run: Run) -> tuple[list[Tensor], Tensor]:
    """A run's weights, gradients and states, where they lie, and its numbers."""
    operands = [rows_of(tensors[run.tensor], run) for tensors in (bucket.weights, bucket.grads)]
    for state in first.states:
        operands += state.rows(run)
    return operands, buffers.same_numbers(first.numbers(run.layer, run.tensor), run.rows)


def _begin(
    bucket: UpdateBucket, first: First, rows: Plan, ready: Sequence[tuple[list[Tensor], Tensor]]
) -> tuple[Tensor, Finish]:
    update = update_rows(rows.rows + 1, bucket.place)  # a padded batch of one row is called with two
    sums: list[list[Tensor]] = []
    updates = []
    for run, (operands, numbers) in zip(rows.whole, ready, strict=True):
        updates.append(update[run.row : run.row + run.rows])
        sums.append(first.run(*operands, updates[-1], numbers, *first.constants))
    for batch in rows.batches:
        copies = [state.copies(batch) for state in first.states]
        read = [buffers.elements(tensors, batch) for tensors in (bucket.weights, bucket.grads)]
        operands = [buffers.padded(parts, batch, 0.0) for parts in read] + [t for held in copies for t in held]
        numbers = buffers.numbers_of([first.numbers(run.layer, run.tensor) for run in batch], batch)
        here = update[batch[0].row : batch[0].row + numbers.shape[0]]
        sums.append(first.run(*operands, here, numbers, *first.constants))
        for state, held in zip(first.states, copies, strict=True):
            state.keep(batch, held)
    norms = norms_of(bucket, rows, sums, update)
    whole = [(operands[0], part) for (operands, _), part in zip(ready, updates, strict=True)]
    return norms, lambda rates: take_off(bucket, rows, whole, update, rates, first.rounds_twice)


def norms_of(bucket: UpdateBucket, rows: Plan, sums: Sequence[list[Tensor]], update: Tensor) -> Tensor:
    """[2, L] float64: ‖w‖ and ‖u‖."""

    def updates(layer: int) -> list[Tensor]:
        runs = [run for run in (*rows.whole, *rows.padded) if run.layer == layer]
        return [part for run in runs for part in update_parts(update, [run])]

    squares = layer_squares(rows, len(bucket.layout.layers), sums)
    make_sure(squares[0], rows, partial(buffers.layer_elements, bucket.weights, rows))
    make_sure(squares[1], rows, updates)
    return torch.from_numpy(np.sqrt(squares))


def update_parts(update: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """The runs' updates, 1-D views."""
    first = runs[0].row
    return buffers.parts_of(update[first : runs[-1].row + runs[-1].rows], runs)


def take_off(
    bucket: UpdateBucket,
    rows: Plan,
    whole: Sequence[tuple[Tensor, Tensor]],
    update: Tensor,
    rates: list[float],
    rounds_twice: bool,
) -> None:
    """``w -= rate · u``, each layer with its own rate; last rows first, for they are still in the cache.

    Args:
        bucket: What is stepped.
        rows: Its rows.
        whole: (w, u) of each of `Plan.whole`.
        update: u of all rows.
        rates: Of each layer.
        rounds_twice: See `First`.
    """
    for batch in reversed(rows.batches):
        parts = update_parts(update, batch)
        torch._foreach_mul_(parts, [rates[run.layer] for run in batch])
        weights = buffers.elements(bucket.weights, batch)
        if weights[0].dtype == torch.float32:
            torch._foreach_sub_(weights, parts)
        else:
            torch._foreach_copy_(weights, [w.float() - part for w, part in zip(weights, parts, strict=True)])
        round_into(bucket, batch)
    for run, (weight, part) in zip(reversed(rows.whole), reversed(whole), strict=True):
        take_rows_off(weight, part, rates[run.layer], rounds_twice)
        round_into(bucket, [run])


def take_rows_off(weight: Tensor, update: Tensor, rate: float, rounds_twice: bool) -> None:
    """``w -= rate · u`` on a run of rows; the update may be gone afterwards."""
    if weight.dtype != torch.float32:
        weight.copy_(weight.float().sub_(update.mul_(rate)))
    elif rounds_twice:
        weight.sub_(update.mul_(rate))
    else:
        weight.add_(update, alpha=-rate)


def round_into(bucket: UpdateBucket, runs: Sequence[Run]) -> None:
    """Round new master weights into the parameters they belong to."""
    masters = [run for run in runs if bucket.params[run.tensor] is not bucket.weights[run.tensor]]
    if masters:
        torch._foreach_copy_(buffers.elements(bucket.params, masters), buffers.elements(bucket.weights, masters))
