"""LAMB, compiled: one pass over gradients, moments and weights, and one over the update that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Guard, LambBucket
from lightning_scale.optim.kernels.compiled.dtypes import called, variant
from lightning_scale.optim.kernels.compiled.first import Begin, First, UpdateBucket, by_ratio, nothing, skipped
from lightning_scale.optim.kernels.compiled.programs import Program, load
from lightning_scale.optim.kernels.compiled.rows import WIDTH
from lightning_scale.optim.kernels.compiled.state import TensorState
from lightning_scale.optim.kernels.compiled.whole_layers import all_step_alone, one_by_one

_NUMBERS = 9


def lamb(bucket: LambBucket, guard: Guard) -> Begin | None:
    """One LAMB step (see `reference_lamb.lamb`) on contiguous CPU tensors, which differs from the plain one by rounding.

    Args:
        bucket: Parameters and gradients as they are, each kind of one dtype; ε above 0 in float32.
        guard: The clip and the non-finite test of this step.

    Returns:
        The moments are updated; ``None``, and nothing has changed, where the kernel cannot be compiled.
    """
    runs = load([_program(variant(bucket.weights, bucket.grads))])
    if runs is None:
        return None
    if skipped(guard):
        return nothing(bucket)
    numbers = adam_numbers(bucket, guard)
    torch._foreach_add_(bucket.steps, 1.0)
    first = First(runs[0], numbers, [TensorState(bucket.exp_avg), TensorState(bucket.exp_avg_sq)])
    return one_by_one(bucket, first) if all_step_alone(bucket.layout) else by_ratio(bucket, first)


def adam_numbers(bucket: UpdateBucket, guard: Guard) -> Callable[[int, int], tuple[float, ...]]:
    """The columns of `_first` for a (layer, tensor) at this step."""
    beta1, beta2 = bucket.betas
    scale = gradient_scale(bucket.maximize, guard)
    counts = torch.stack(bucket.steps).tolist() if bucket.bias_correction and bucket.steps else [0.0]

    @cache
    def corrections(count: float) -> tuple[float, float]:
        if not bucket.bias_correction:
            return 1.0, 1.0
        return 1 / (1 - beta1 ** (count + 1)), (1 - beta2 ** (count + 1)) ** -0.5

    def numbers(layer: int, tensor: int) -> tuple[float, ...]:
        inverse1, inverse2 = corrections(counts[tensor] if bucket.bias_correction else 0.0)
        decay = bucket.weight_decay[layer]
        return beta1, 1 - beta1, beta2, 1 - beta2, inverse1, inverse2, bucket.eps, decay, scale

    return numbers


def gradient_scale(maximize: bool, guard: Guard) -> float:
    """What every gradient is multiplied by: the clip, and -1 uphill. 1 changes no bit."""
    scale = 1.0 if guard.clip is None else float(guard.clip.float())
    return -scale if maximize else scale


@cache
def _program(types: tuple[torch.dtype, torch.dtype]) -> Program:
    state = (WIDTH, torch.float32)
    operands = ((WIDTH, types[0]), (WIDTH, types[1]), state, state, state, (_NUMBERS, torch.float32))
    return Program(called("lamb", types), _first, operands)


def _first(w: Tensor, g: Tensor, m: Tensor, v: Tensor, u: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    """Moments and update in place; sums of w² and u² over each row.

    The numbers come as columns although they seldom differ between rows: Inductor would make one loop over all elements
    of what is elementwise, and another of the sums, where no operand keeps the rows apart.
    """
    beta1, rest1, beta2, rest2, inverse1, inverse2, eps, decay, scale = torch.split(numbers, 1, dim=1)
    w, g = w.float(), g.float() * scale
    first = m * beta1 + g * rest1
    second = v * beta2 + g * rest2 * g
    update = first * inverse1 / (second.sqrt() * inverse2 + eps) + w * decay
    m.copy_(first)
    v.copy_(second)
    u.copy_(update)
    return (w * w).sum(1), (update * update).sum(1)
