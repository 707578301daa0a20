"""LARS by Triton: in one launch where the layers lie whole on this rank, else in two with a collective between them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant, number
from lightning_scale.optim.kernels.fused.elements import triton_type
from lightning_scale.optim.kernels.fused.lars_chunk import apply, measure
from lightning_scale.optim.kernels.fused.launch import block, guard_arguments, launch
from lightning_scale.optim.kernels.fused.order import ORDERED_CHUNK, order_of
from lightning_scale.optim.kernels.fused.ratio import bounds, finish_layer
from lightning_scale.optim.kernels.fused.sums import SUM_BLOCK, norms_of_layers
from lightning_scale.optim.kernels.fused.table import chunks_of, pointers
from lightning_scale.optim.kernels.fused.turns import (
    counters,
    gave_up,
    is_last,
    looks,
    next_item,
    one_launch_fails,
    open_second_pass,
    ratio_is_known,
)
from lightning_scale.optim.kernels.work import FirstPass, Guard, LarsBucket, LayerNorms


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip, partial, momentum, rest,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, ON_MOMENTUM: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1 of all chunks."""
    measure(tl.program_id(0), weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip,
            partial, tl.num_programs(0), momentum, rest,
            WEIGHT, GRAD, ON_MOMENTUM, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["rate"])
def _apply(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, scale, finite, clip, rate, momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2 of all chunks, backwards, for what pass 1 saw last is what the cache still holds."""
    apply(tl.num_programs(0) - 1 - tl.program_id(0), parameters, weights, grads, buffers, tensor_of, start_of, length_of,
          layer_of, decays, scale, finite, clip, rate, momentum, PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, BUFFER,
          NESTEROV, RATE_OUTSIDE, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["looks", "layers", "chunks"], do_not_specialize_on_alignment=["rate"])
def _both(  # type: ignore[no-untyped-def]
    order,  # [2 · chunks] int32
    done,  # see `counters`
    gave_up, looks,  # see `ratio_is_known`
    first, layers, chunks,
    adapts, stats, scale,  # see `finish_layer`
    parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip, rate, partial,
    momentum, rest, coefficient, eps, phi_low, phi_high, low, high,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, BLOCK: tl.constexpr, SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    """Both passes in the order of `order_of`."""
    item = next_item(order, done + layers)
    if item >= 0:
        measure(item, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip, partial,
                chunks, momentum, rest, WEIGHT, GRAD, ON_MOMENTUM, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip
        layer = tl.load(layer_of + item)
        if is_last(done, layer, first):
            finish_layer(layer, layers, chunks, first, partial, decays, adapts, rate, stats, scale, coefficient, eps,
                         phi_low, phi_high, low, high, not ON_MOMENTUM, RATE_OUTSIDE, SUM_BLOCK)  # fmt: skip
            open_second_pass(done, layer)
    elif ratio_is_known(done, tl.load(layer_of - 1 - item), first, layers, looks, gave_up):
        apply(-1 - item, parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, scale, finite,
              clip, rate, momentum, PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, BUFFER, NESTEROV, RATE_OUTSIDE, TEST, CLIP,
              UPHILL, BLOCK)  # fmt: skip


def lars(bucket: LarsBucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LARS step on a bucket, in place; see `reference_lars.lars`. All of it where no other rank has to be asked."""
    layout, device = bucket.layout, bucket.params[0].device
    apart = layout.all_reduce is not None or device in one_launch_fails
    chunks = chunks_of(layout, device) if apart else chunks_of(layout, device, ORDERED_CHUNK)
    finite, clip, tests = guard_arguments(guard, device)
    params, weights, grads, buffers = (
        pointers(layout, name, getattr(bucket, name), device)
        for name in ("params", "weights", "grads", "momentum_buffer")
    )
    decays = constant(layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(2, chunks.count, device=device)
    rate, momentum = number(bucket.lr, device), float(bucket.momentum)
    outside = not bucket.momentum_norm and not bucket.lr_in_momentum
    both: dict[str, Any] = {
        "WEIGHT": triton_type(bucket.weights[0].dtype),
        "GRAD": triton_type(bucket.grads[0].dtype),
        "ON_MOMENTUM": bucket.momentum_norm,
        "UPHILL": bucket.maximize,
        "BLOCK": block(),
        **tests,
    }
    last: dict[str, Any] = {
        "PARAM": triton_type(bucket.params[0].dtype),
        "MASTER": bucket.params[0] is not bucket.weights[0],
        "BUFFER": bool(bucket.momentum_buffer),
        "NESTEROV": bucket.nesterov,
        "RATE_OUTSIDE": outside,
    }
    if not apart:
        layers = len(layout.layers)
        stats, scale = torch.empty(3, layers, device=device), torch.empty(layers, device=device)
        launch(
            _both, 2 * chunks.count, order_of(layout, chunks),
            counters(layout, device), gave_up(layout, device), looks(), chunks.first, layers, chunks.count,
            bucket.trust.adapt.view(torch.int8), stats, scale,
            params, weights, grads, buffers, *chunks.columns, decays, finite, clip, rate, partial,
            momentum, 1 - momentum, float(bucket.trust_coefficient), float(bucket.eps), *bounds(bucket.trust),
            SUM_BLOCK=SUM_BLOCK, **both, **last,
        )  # fmt: skip
        return LayerNorms(*stats.unbind())
    launch(
        _measure, chunks.count, weights, grads, buffers, *chunks.columns, decays, finite, clip, partial,
        momentum, 1 - momentum, **both,
    )  # fmt: skip

    def second(ratio: Tensor) -> None:
        launch(
            _apply, chunks.count, params, weights, grads, buffers, *chunks.columns, decays,
            ratio if outside else (ratio * bucket.lr).contiguous(), finite, clip, rate, momentum, **both, **last,
        )  # fmt: skip

    return FirstPass(norms_of_layers(partial, chunks), second)
