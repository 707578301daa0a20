"""The two passes that LAMB and its kin share: a program leaves updates in rows, and these are taken off the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.programs import Run as Compiled
from lightning_scale.optim.kernels.compiled.rows import Plan, Run, plan, rows_of
from lightning_scale.optim.kernels.compiled.scratch import update_rows
from lightning_scale.optim.kernels.compiled.state import State
from lightning_scale.optim.kernels.compiled.sums import layer_squares, make_sure
from lightning_scale.optim.kernels.work import FirstPass, Guard

UpdateBucket = Any
"""A `Bucket` or a `CodedBucket`: layout, params, weights, grads, lr."""


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


def by_ratio(bucket: UpdateBucket, first: First) -> FirstPass:
    """`first_pass` where the rate is the ratio times the learning rate."""
    norms, finish = first_pass(bucket, first)
    return FirstPass(norms, lambda ratios: finish((ratios * bucket.lr).tolist()))


def nothing(bucket: UpdateBucket) -> FirstPass:
    """Of a step that is left out."""
    return FirstPass(torch.zeros(2, len(bucket.layout.layers), dtype=torch.float64), lambda ratios: None)


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


def first_pass(bucket: UpdateBucket, first: First) -> tuple[Tensor, Callable[[list[float]], None]]:
    """Run the program over all rows; its updates wait in scratch memory for the rates.

    Returns:
        [2, L] float64, this rank's own ‖w‖ and ‖u‖ of each layer, and what takes each layer's rate and ends the step.
    """
    rows = layout_plan(bucket, first.grid)
    update = update_rows(rows.rows + 1, bucket.place)  # a padded batch of one row is called with two
    sums: list[list[Tensor]] = []

    def call(operands: list[Tensor], begin: int, count: int, numbers: Tensor) -> None:
        here = first.run(*operands, update[begin : begin + numbers.shape[0]], numbers, *first.constants)
        sums.append(here if count == numbers.shape[0] else [row_sums[:count] for row_sums in here])

    for run in rows.whole:
        operands = [rows_of(tensors[run.tensor], run) for tensors in (bucket.weights, bucket.grads)]
        for state in first.states:
            operands += state.rows(run)
        numbers = buffers.same_numbers(first.numbers(run.layer, run.tensor), run.rows)
        call(operands, run.row, run.rows, numbers)
    for batch in rows.batches:
        copies = [state.copies(batch) for state in first.states]
        read = [buffers.elements(tensors, batch) for tensors in (bucket.weights, bucket.grads)]
        operands = [buffers.padded(parts, batch, 0.0) for parts in read]
        numbers = buffers.numbers_of([first.numbers(run.layer, run.tensor) for run in batch], batch)
        call(operands + [t for held in copies for t in held], batch[0].row, sum(run.rows for run in batch), numbers)
        for state, held in zip(first.states, copies, strict=True):
            state.keep(batch, held)
    norms = norms_of(bucket, rows, sums, update)
    return norms, lambda rates: take_off(bucket, rows, update, rates, first.rounds_twice)


def norms_of(bucket: UpdateBucket, rows: Plan, sums: Sequence[list[Tensor]], update: Tensor) -> Tensor:
    """[2, L] float64: ‖w‖ and ‖u‖."""
    layers = len(bucket.layout.layers)
    runs = (*rows.whole, *rows.padded)

    def weights(layer: int) -> list[Tensor]:
        return buffers.elements(bucket.weights, [run for run in runs if run.layer == layer])

    def updates(layer: int) -> list[Tensor]:
        return [part for run in runs if run.layer == layer for part in update_parts(update, [run])]

    squares = layer_squares(rows, layers, sums)
    make_sure(squares[0], rows, weights)
    make_sure(squares[1], rows, updates)
    return squares.sqrt()


def update_parts(update: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """The runs' updates, 1-D views."""
    first = runs[0].row
    return buffers.parts_of(update[first : runs[-1].row + runs[-1].rows], runs)


def take_off(bucket: UpdateBucket, rows: Plan, update: Tensor, rates: list[float], rounds_twice: bool) -> None:
    """``w -= rate · u``, each layer with its own rate; last rows first, for they are still in the cache."""
    for batch in reversed(rows.batches):
        parts = update_parts(update, batch)
        torch._foreach_mul_(parts, [rates[run.layer] for run in batch])
        weights = buffers.elements(bucket.weights, batch)
        if weights[0].dtype == torch.float32:
            torch._foreach_sub_(weights, parts)
        else:
            torch._foreach_copy_(weights, [w.float() - part for w, part in zip(weights, parts, strict=True)])
        round_into(bucket, batch)
    for run in reversed(rows.whole):
        (weight,), (part,), rate = (
            buffers.elements(bucket.weights, [run]),
            update_parts(update, [run]),
            rates[run.layer],
        )
        if weight.dtype != torch.float32:
            weight.copy_(weight.float().sub_(part.mul_(rate)))
        elif rounds_twice:
            weight.sub_(part.mul_(rate))
        else:
            weight.add_(part, alpha=-rate)
        round_into(bucket, [run])


def round_into(bucket: UpdateBucket, runs: Sequence[Run]) -> None:
    """Round new master weights into the parameters they belong to."""
    masters = [run for run in runs if bucket.params[run.tensor] is not bucket.weights[run.tensor]]
    if masters:
        torch._foreach_copy_(buffers.elements(bucket.params, masters), buffers.elements(bucket.weights, masters))
