"""LARS, compiled: one look at weights and gradients, and one pass that takes the step."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedLarsBucket, FirstPass, Guard, LarsBucket
from lightning_scale.optim.kernels.compiled import buffers
from lightning_scale.optim.kernels.compiled.dtypes import called, variant
from lightning_scale.optim.kernels.compiled.first import (
    Begin,
    First,
    by_ratio,
    layout_plan,
    nothing,
    round_into,
    skipped,
)
from lightning_scale.optim.kernels.compiled.lamb import gradient_scale
from lightning_scale.optim.kernels.compiled.look import look
from lightning_scale.optim.kernels.compiled.programs import Program, load
from lightning_scale.optim.kernels.compiled.programs import Run as Compiled
from lightning_scale.optim.kernels.compiled.rows import WIDTH, rows_of
from lightning_scale.optim.kernels.compiled.state import TensorState
from lightning_scale.optim.kernels.compiled.whole_layers import all_step_alone, one_by_one

_NUMBERS = 7


def lars(bucket: LarsBucket, guard: Guard) -> Begin | None:
    """One LARS step (see `reference_lars.lars`) on contiguous CPU tensors, which differs from the plain one by rounding.

    Args:
        bucket: Parameters and gradients as they are, each kind of one dtype; with a momentum buffer.
        guard: The clip and the non-finite test of this step.

    Returns:
        ``None``, and nothing has changed, where a kernel cannot be compiled.
    """
    types = variant(bucket.weights, bucket.grads)
    runs = load([_averaging(types) if bucket.momentum_norm else _stepping(types)])
    if runs is None:
        return None
    if skipped(guard):
        return nothing(bucket)
    scale = gradient_scale(bucket.maximize, guard)
    if bucket.momentum_norm:

        def numbers(layer: int, tensor: int) -> tuple[float, ...]:
            return scale, bucket.weight_decay[layer], bucket.momentum, 1 - bucket.momentum

        first = First(runs[0], numbers, [TensorState(bucket.momentum_buffer)])
        return one_by_one(bucket, first) if all_step_alone(bucket.layout) else by_ratio(bucket, first)
    norms = clipped_norms(bucket, scale, exact=False)
    if norms is None:
        return None
    return lambda: FirstPass(norms, lambda ratios: _second(bucket, runs[0], scale, ratios.tolist()))


def clipped_norms(bucket: LarsBucket | CodedLarsBucket, scale: float, exact: bool) -> Tensor | None:
    """[2, L] float64: ‖w‖ and that of the clipped gradient, from what was seen already where it was."""
    norms = look(bucket, exact) if bucket.norms is None else bucket.norms
    return None if norms is None else norms * torch.tensor([[1.0], [abs(scale)]], dtype=torch.float64)


def _second(bucket: LarsBucket, run_program: Compiled, scale: float, ratios: list[float]) -> None:
    lr = float(bucket.lr)
    inside, outside = (lr, 1.0) if bucket.lr_in_momentum else (1.0, lr)
    own, buffered = (1.0, bucket.momentum) if bucket.nesterov else (0.0, 1.0)

    def numbers(layer: int) -> tuple[float, ...]:
        ratio = ratios[layer]
        return scale, bucket.weight_decay[layer], ratio * inside, bucket.momentum, own, buffered, outside

    rows = layout_plan(bucket)
    tensors = (bucket.weights, bucket.grads, bucket.momentum_buffer)
    ready = [
        (run, [rows_of(t[run.tensor], run) for t in tensors], buffers.same_numbers(numbers(run.layer), run.rows))
        for run in reversed(rows.whole)
    ]
    for run, operands, here in ready:
        run_program(*operands, here)
        round_into(bucket, [run])
    for batch in rows.batches:
        parts = [buffers.elements(t, batch) for t in tensors]
        held = [buffers.padded(p, batch, 0.0) for p in parts]
        run_program(*held, buffers.numbers_of([numbers(run.layer) for run in batch], batch))
        for part, buffer in ((parts[0], held[0]), (parts[2], held[2])):
            torch._foreach_copy_(part, buffers.parts_of(buffer, batch))
        round_into(bucket, batch)


@cache
def _stepping(types: tuple[torch.dtype, torch.dtype]) -> Program:
    operands = ((WIDTH, types[0]), (WIDTH, types[1]), (WIDTH, torch.float32), (_NUMBERS, torch.float32))
    return Program(called("lars", types), _step, operands)


def _step(w: Tensor, g: Tensor, buffer: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """All forms on the gradient: d = inside·(g + λw); buf = μ buf + d; w -= outside·(own·d + buffered·buf)."""
    scale, decay, inside, momentum, own, buffered, outside = torch.split(numbers, 1, dim=1)
    weight = w.float()
    direction = (g.float() * scale + weight * decay) * inside
    new = buffer * momentum + direction
    buffer.copy_(new)
    w.copy_(weight - (direction * own + new * buffered) * outside)
    return ()


@cache
def _averaging(types: tuple[torch.dtype, torch.dtype]) -> Program:
    state = (WIDTH, torch.float32)
    return Program(
        called("lars-averaged", types),
        _average,
        ((WIDTH, types[0]), (WIDTH, types[1]), state, state, (4, torch.float32)),
    )


def _average(w: Tensor, g: Tensor, buffer: Tensor, u: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """m = μ m + (1-μ)(g + λw), which is the update too; sums of w² and m² over each row."""
    scale, decay, momentum, rest = torch.split(numbers, 1, dim=1)
    w = w.float()
    new = buffer * momentum + (g.float() * scale + w * decay) * rest
    buffer.copy_(new)
    u.copy_(new)
    return (w * w).sum(1), (new * new).sum(1)
