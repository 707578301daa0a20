"""The 8-bit optimizers, compiled: one pass that reads, updates and rounds the moments, and one over the update it leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import (
    CodedAdamBucket,
    CodedBucket,
    CodedLambBucket,
    CodedLarsBucket,
    CodedSgdBucket,
    FirstPass,
    Guard,
)
from lightning_scale.optim.kernels.compiled.codec import absmax_of, cells, nearest, values
from lightning_scale.optim.kernels.compiled.dtypes import called, variant
from lightning_scale.optim.kernels.compiled.first import Begin, First, by_ratio, first_pass, nothing, skipped
from lightning_scale.optim.kernels.compiled.lamb import adam_numbers, gradient_scale
from lightning_scale.optim.kernels.compiled.lars import clipped_norms
from lightning_scale.optim.kernels.compiled.programs import Program, load
from lightning_scale.optim.kernels.compiled.programs import Run as Compiled
from lightning_scale.optim.kernels.compiled.rows import WIDTH
from lightning_scale.optim.kernels.compiled.state import CodedState
from lightning_scale.optim.quantization import SIGNED, UNSIGNED
from lightning_scale.optim.state.moments import CodedMoment, Moment


def lamb8bit(bucket: CodedLambBucket, guard: Guard) -> Begin | None:
    """One LAMB step with 8-bit moments (see `eight_bit.reference_lamb.lamb`): its codes and scales bit for bit.

    Args:
        bucket: Contiguous CPU tensors, each kind of one dtype, all moments in 8 bits; ε above 0 in float32.
        guard: The clip and the non-finite test of this step.

    Returns:
        The moments are updated; ``None``, and nothing has changed, where the kernel cannot be compiled.
    """
    return _adam(bucket, guard)


def adamw8bit(bucket: CodedAdamBucket, guard: Guard) -> bool:
    """One AdamW step (see `eight_bit.reference_adamw.adamw`), which is LAMB's with ratio 1; arguments as there.

    Returns:
        Whether it was taken: ``False``, and nothing has changed, where the kernel cannot be compiled.
    """
    return _without_ratios(bucket, _adam(bucket, guard))


def lars8bit(bucket: CodedLarsBucket, guard: Guard) -> Begin | None:
    """One LARS step with 8-bit momentum (see `eight_bit.reference_lars.lars`): its codes and scales bit for bit, where
    the norms agree, which are summed in float64 in another order.

    Arguments and result as at `lamb8bit`'s; with a momentum buffer.
    """
    types = variant(bucket.weights, bucket.grads)
    runs = load([_momentum_program(types)])
    if runs is None:
        return None
    if skipped(guard):
        return nothing(bucket)
    scale = gradient_scale(bucket.maximize, guard)
    mu, decays = bucket.momentum, bucket.weight_decay
    if bucket.momentum_norm:
        averaged = _momentum(runs[0], bucket, lambda layer, _: (scale, decays[layer], 1 - mu, mu, 1.0, 0.0, 1.0))
        return by_ratio(bucket, averaged)
    norms = clipped_norms(bucket, scale, exact=True)
    if norms is None:
        return None
    own, buffered = (1.0, mu) if bucket.nesterov else (0.0, 1.0)

    def second(ratios: Tensor) -> None:
        inside = (ratios * bucket.lr if bucket.lr_in_momentum else ratios).tolist()
        outside = 1.0 if bucket.lr_in_momentum else float(bucket.lr)
        step = _momentum(
            runs[0], bucket, lambda layer, _: (scale, decays[layer], inside[layer], mu, 1.0, own, buffered)
        )
        first_pass(bucket, step)()[1]([outside] * len(inside))

    return lambda: FirstPass(norms, second)


def sgd8bit(bucket: CodedSgdBucket, guard: Guard) -> bool:
    """One SGD step (see `eight_bit.reference_sgd.sgd`), with momentum; arguments and result as at `adamw8bit`'s."""
    runs = load([_momentum_program(variant(bucket.weights, bucket.grads))])
    if runs is None:
        return False
    if skipped(guard):
        return True
    scale, mu = gradient_scale(bucket.maximize, guard), bucket.momentum
    shares = [1.0 if count == 0 else 1 - bucket.dampening for count in torch.stack(bucket.steps).tolist()]
    own, buffered = (1.0, mu) if bucket.nesterov else (0.0, 1.0)
    torch._foreach_add_(bucket.steps, 1.0)
    step = _momentum(
        runs[0],
        bucket,
        lambda layer, tensor: (scale, bucket.weight_decay[layer], 1.0, mu, shares[tensor], own, buffered),
    )
    return _without_ratios(bucket, by_ratio(bucket, step))


def _without_ratios(bucket: CodedBucket, begin: Begin | None) -> bool:
    if begin is not None:
        passed = begin()
        assert isinstance(passed, FirstPass), "8-bit layers are not stepped one by one"
        passed.second(torch.ones(len(bucket.layout.layers), dtype=torch.float32))
    return begin is not None


def _adam(bucket: CodedAdamBucket, guard: Guard) -> Begin | None:
    runs = load([_adam_program(variant(bucket.weights, bucket.grads))])
    if runs is None:
        return None
    if skipped(guard):
        return nothing(bucket)
    numbers = adam_numbers(bucket, guard)
    torch._foreach_add_(bucket.steps, 1.0)
    states = [_coded(bucket.exp_avg), _coded(bucket.exp_avg_sq)]
    constants = (cells(SIGNED), cells(UNSIGNED))
    return by_ratio(bucket, First(runs[0], numbers, states, grid=True, constants=constants))


def _momentum(
    run: Compiled, bucket: CodedLarsBucket | CodedSgdBucket, numbers: Callable[[int, int], tuple[float, ...]]
) -> First:
    # The weights' decay goes into the momentum, so codes are bit for bit only where weights are.
    states = [_coded(bucket.momentum_buffer)]
    return First(run, numbers, states, grid=True, constants=(cells(SIGNED),), rounds_twice=True)


def _coded(moments: list[Moment]) -> CodedState:
    assert all(isinstance(moment, CodedMoment) for moment in moments), "small layers go the plain way"
    return CodedState(cast("list[CodedMoment]", moments))


_CODES = ((WIDTH, torch.uint8), (1, torch.float32))


@cache
def _adam_program(types: tuple[torch.dtype, torch.dtype]) -> Program:
    given = ((WIDTH, types[0]), (WIDTH, types[1]))
    rest = ((WIDTH, torch.float32), (9, torch.float32), cells(SIGNED), cells(UNSIGNED))
    return Program(called("adam8bit", types), _adam_first, (*given, *_CODES, *_CODES, *rest))


def _adam_first(
    w: Tensor,
    g: Tensor,
    m_codes: Tensor,
    m_absmax: Tensor,
    v_codes: Tensor,
    v_absmax: Tensor,
    u: Tensor,
    numbers: Tensor,
    signed: Tensor,
    unsigned: Tensor,
) -> tuple[Tensor, ...]:
    """Moments and update in place; sums of w² and u² over each row. Each operation on moments rounds as the plain one."""
    beta1, rest1, beta2, rest2, inverse1, inverse2, eps, decay, scale = torch.split(numbers, 1, dim=1)
    w, g = w.float(), g.float() * scale
    m = values(m_codes, SIGNED) * m_absmax * beta1 + g * rest1
    v = values(v_codes, UNSIGNED) * v_absmax * beta2 + g * rest2 * g
    update = m * inverse1 / (v.sqrt() * inverse2 + eps) + w * decay
    m_scale, v_scale = absmax_of(m), absmax_of(v)
    m_new, v_new = nearest(m, m_scale, signed, SIGNED), nearest(v, v_scale, unsigned, UNSIGNED)
    sums = (w * w).sum(1), (update * update).sum(1)
    for target, new in ((u, update), (m_codes, m_new), (m_absmax, m_scale), (v_codes, v_new), (v_absmax, v_scale)):
        target.copy_(new)
    return sums


@cache
def _momentum_program(types: tuple[torch.dtype, torch.dtype]) -> Program:
    given = ((WIDTH, types[0]), (WIDTH, types[1]))
    rest = ((WIDTH, torch.float32), (7, torch.float32), cells(SIGNED))
    return Program(called("momentum8bit", types), _momentum_first, (*given, *_CODES, *rest))


def _momentum_first(
    w: Tensor, g: Tensor, codes: Tensor, absmax: Tensor, u: Tensor, numbers: Tensor, signed: Tensor
) -> tuple[Tensor, ...]:
    """LARS' and SGD's: d = inside·(g + λw); buf = μ buf + share·d; u = own·d + buffered·buf."""
    scale, decay, inside, momentum, share, own, buffered = torch.split(numbers, 1, dim=1)
    w = w.float()
    direction = (g.float() * scale + w * decay) * inside
    buffer = values(codes, SIGNED) * absmax * momentum + direction * share
    update = direction * own + buffer * buffered
    new_scale = absmax_of(buffer)
    new = nearest(buffer, new_scale, signed, SIGNED)
    wide = w.double(), update.double()  # the ratio, and with it the next codes, hang on every bit of the norms
    sums = tuple((x * x).sum(1) for x in wide)
    for target, value in ((u, update), (codes, new), (absmax, new_scale)):
        target.copy_(value)
    return sums
