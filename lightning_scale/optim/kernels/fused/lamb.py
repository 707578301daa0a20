"""LAMB by Triton: in one launch where the layers lie whole on this rank, else in two with a collective between them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant, number
from lightning_scale.optim.kernels.fused.elements import triton_type
from lightning_scale.optim.kernels.fused.lamb_chunk import apply, measure
from lightning_scale.optim.kernels.fused.launch import block, guard_arguments, launch
from lightning_scale.optim.kernels.fused.order import ORDERED_CHUNK, order_of
from lightning_scale.optim.kernels.fused.ratio import bounds, finish_layer
from lightning_scale.optim.kernels.fused.steps import count_steps
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
from lightning_scale.optim.kernels.work import FirstPass, Guard, LambBucket, LayerNorms


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, finite, clip,
    partial, beta1, rest1, beta2, rest2, eps,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, BIAS: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1 of all chunks."""
    measure(tl.program_id(0), weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections,
            decays, finite, clip, partial, tl.num_programs(0), beta1, rest1, beta2, rest2, eps,
            WEIGHT, GRAD, BIAS, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    parameters, weights, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, scale, finite,
    eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr, TEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2 of all chunks, backwards, for what pass 1 saw last is what the cache still holds."""
    apply(tl.num_programs(0) - 1 - tl.program_id(0), parameters, weights, moments1, moments2, tensor_of, start_of, length_of,
          layer_of, corrections, decays, scale, finite, eps, PARAM, WEIGHT, MASTER, BIAS, TEST, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["looks", "layers", "chunks"], do_not_specialize_on_alignment=["rate"])
def _both(  # type: ignore[no-untyped-def]
    order,  # [2 · chunks] int32
    done,  # see `counters`
    gave_up, looks,  # see `ratio_is_known`
    first, layers, chunks,
    adapts, rate, stats, scale,  # see `finish_layer`
    parameters, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, finite,
    clip, partial, beta1, rest1, beta2, rest2, eps, phi_low, phi_high, low, high,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr, SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    """Both passes in the order of `order_of`."""
    item = next_item(order, done + layers)
    if item >= 0:
        measure(item, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays,
                finite, clip, partial, chunks, beta1, rest1, beta2, rest2, eps,
                WEIGHT, GRAD, BIAS, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip
        layer = tl.load(layer_of + item)
        if is_last(done, layer, first):
            finish_layer(layer, layers, chunks, first, partial, decays, adapts, rate, stats, scale, 1.0, eps,
                         phi_low, phi_high, low, high, False, False, SUM_BLOCK)  # fmt: skip
            open_second_pass(done, layer)
    elif ratio_is_known(done, tl.load(layer_of - 1 - item), first, layers, looks, gave_up):
        apply(-1 - item, parameters, weights, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections,
              decays, scale, finite, eps, PARAM, WEIGHT, MASTER, BIAS, TEST, BLOCK)  # fmt: skip


def lamb(bucket: LambBucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LAMB step on a bucket, in place; see `reference_lamb.lamb`. All of it where no other rank has to be asked."""
    layout, device = bucket.layout, bucket.params[0].device
    apart = layout.all_reduce is not None or device in one_launch_fails
    chunks = chunks_of(layout, device) if apart else chunks_of(layout, device, ORDERED_CHUNK)
    finite, clip, tests = guard_arguments(guard, device)

    def table(name: str) -> Tensor:
        return pointers(layout, name, getattr(bucket, name), device)

    decays = constant(layout, "decays", bucket.weight_decay, torch.float32, device)
    corrections = count_steps(layout, bucket.steps, bucket.betas, finite, tests["TEST"])
    partial = torch.empty(2, chunks.count, device=device)
    beta1, beta2 = bucket.betas
    moments = (table("exp_avg"), table("exp_avg_sq"))
    numbers = tuple(map(float, (beta1, 1 - beta1, beta2, 1 - beta2, bucket.eps)))
    weight, grad = triton_type(bucket.weights[0].dtype), triton_type(bucket.grads[0].dtype)
    both: dict[str, Any] = {"WEIGHT": weight, "BIAS": bucket.bias_correction, "TEST": tests["TEST"], "BLOCK": block()}
    first: dict[str, Any] = {"GRAD": grad, "CLIP": tests["CLIP"], "UPHILL": bucket.maximize}
    last: dict[str, Any] = {
        "PARAM": triton_type(bucket.params[0].dtype),
        "MASTER": bucket.params[0] is not bucket.weights[0],
    }
    params, weights, grads = table("params"), table("weights"), table("grads")
    if not apart:
        layers = len(layout.layers)
        stats, scale = torch.empty(3, layers, device=device), torch.empty(layers, device=device)
        launch(
            _both, 2 * chunks.count, order_of(layout, chunks),
            counters(layout, device), gave_up(layout, device), looks(), chunks.first, layers, chunks.count,
            bucket.trust.adapt.view(torch.int8), number(bucket.lr, device), stats, scale,
            params, weights, grads, *moments, *chunks.columns, corrections, decays, finite, clip, partial,
            *numbers, *bounds(bucket.trust), SUM_BLOCK=SUM_BLOCK, **both, **first, **last,
        )  # fmt: skip
        return LayerNorms(*stats.unbind())
    launch(
        _measure, chunks.count, weights, grads, *moments, *chunks.columns, corrections, decays, finite, clip, partial,
        *numbers, **both, **first,
    )  # fmt: skip

    def second(ratio: Tensor) -> None:
        launch(
            _apply, chunks.count, params, weights, *moments, *chunks.columns, corrections, decays,
            (ratio * bucket.lr).contiguous(), finite, float(bucket.eps), **both, **last,
        )  # fmt: skip

    return FirstPass(norms_of_layers(partial, chunks), second)
