"""LARS by Triton, with its momentum in float32 or in 8 bits."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard, LayerNorms
from lightning_scale.optim.backends.device import constant, number
from lightning_scale.optim.backends.norms import trust_coefficient
from lightning_scale.optim.backends.triton.chunks import chunks_of, pointers
from lightning_scale.optim.backends.triton.elements import (
    BLOCK,
    address,
    chunk_head,
    goes_on,
    gradient_factor,
    moment_places,
    parameter_places,
    read,
    read_gradient,
    read_tile,
    read_weight,
    read_weight_tile,
    tile,
    triton_type,
    vectors,
    write,
    write_rounded,
    write_weight,
    write_weight_tile,
)
from lightning_scale.optim.backends.triton.launch import (
    PerChunk,
    block,
    code_tables,
    count,
    guard_arguments,
    launch,
    prepare,
    rounding_keys,
)
from lightning_scale.optim.backends.triton.quantization import largest_of_rows, read_moment, write_moment
from lightning_scale.optim.backends.triton.sums import (
    SUM_BLOCK,
    bounds,
    finish_layer,
    keep_sums,
    norms_of_chunks,
    norms_of_layers,
    squares,
)
from lightning_scale.optim.backends.triton.turns import (
    ORDERED_CHUNK,
    attempts,
    counters,
    gave_up,
    is_last,
    next_item,
    one_launch_fails,
    open_second_pass,
    order_of,
    ratio_is_known,
)


@triton.jit
def _norms_of(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, i, length, momentum, rest, decay, factor,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    DECAYED: tl.constexpr,
    SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 1; w², and g², (g + λw)² or m²."""
    w = read_weight(p_at, w_at, i, length, PARAM, WEIGHT, MASTER, WHOLE)
    n = read(g_at, i, length, GRAD, WHOLE)
    if SCALED:
        n = n * factor
    if DECAYED:
        n = n + decay * w
    if ON_MOMENTUM:
        n = momentum * read(m_at, i, length, tl.float32, WHOLE) + rest * (n + decay * w)
        write(m_at, i, length, n, tl.float32, WHOLE)
    return w * w, n * n


@triton.jit
def measure(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, grads, buffers,  # [tensors] int64: pointers
    tensor_of, start_of, length_of, layer_of,  # [chunks]
    decays,  # [layers] float32
    finite, clip,  # 0-d: a bool (as int8), a float32
    partial, chunks,  # [2, chunks] float32: Σ w², and Σ g², Σ (g + λw)² or Σ m²
    momentum, rest,  # μ, and 1 - μ taken in float64
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    DECAYED: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1: the chunk's share of ‖w‖² and of ‖g‖², of ‖g + λw‖², or of ‖m‖² of m = μm + (1-μ)(g + λw), kept in place.

    Reads 8 B an element (float32); on the momentum 12, and writes 4. On a step that is skipped: nothing, and zeros.
    """
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    w_at, g_at = address(weights, tensor, start, WEIGHT), address(grads, tensor, start, GRAD)
    p_at, m_at = w_at, w_at
    if MASTER:
        p_at = address(parameters, tensor, start, PARAM)
    if ON_MOMENTUM:
        m_at = address(buffers, tensor, start, tl.float32)
    decay = tl.load(decays + tl.load(layer_of + chunk))
    factor = gradient_factor(clip, CLIP, UPHILL)
    sum_w, sum_n = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    whole = vectors(length, p_at | w_at | g_at | m_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        ww, nn = _norms_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, momentum, rest, decay, factor,
                           PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, DECAYED, CLIP or UPHILL, True)  # fmt: skip
        sum_w += ww
        sum_n += nn
    for begin in range(whole, length, BLOCK):
        ww, nn = _norms_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, momentum, rest, decay, factor,
                           PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, DECAYED, CLIP or UPHILL, False)  # fmt: skip
        sum_w += ww
        sum_n += nn
    tl.store(partial + chunk, tl.sum(sum_w, 0))
    tl.store(partial + chunks + chunk, tl.sum(sum_n, 0))


@triton.jit
def _step_of(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, i, length, key, decay, ratio, factor, rate, momentum, share,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, DAMPENED: tl.constexpr,
    RATE_OUTSIDE: tl.constexpr, SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 2."""
    w = read_weight(p_at, w_at, i, length, PARAM, WEIGHT, MASTER, WHOLE, True)
    if ON_MOMENTUM:
        d = ratio * read(m_at, i, length, tl.float32, WHOLE, True)
    else:
        g = read(g_at, i, length, GRAD, WHOLE, True)
        if SCALED:
            g = g * factor
        d = ratio * (g + decay * w)
        if BUFFER:
            m = momentum * read(m_at, i, length, tl.float32, WHOLE, True) + (d * share if DAMPENED else d)
            write(m_at, i, length, m, tl.float32, WHOLE, True)
            d = d + momentum * m if NESTEROV else m
    if RATE_OUTSIDE:
        d = d * rate
    w = w - d
    write_weight(w_at, i, length, w, key, WEIGHT, STOCHASTIC, WHOLE, True)
    if MASTER:
        write(p_at, i, length, w, PARAM, WHOLE, True)


@triton.jit
def apply(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, grads, buffers,
    tensor_of, start_of, length_of, layer_of,
    decays,
    scale,  # [layers] float32: ratio, times the rate unless it stays outside the momentum
    finite, clip,
    rate_at,  # 0-d float32: the learning rate, where it stays outside
    shares,  # [tensors] float32: how much of d the momentum takes, where it is dampened
    keys,  # [chunks, 4] int32: see `write_weight`
    momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, DAMPENED: tl.constexpr,
    RATE_OUTSIDE: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2: the step. Reads 12 B an element and writes 8 (float32); on the momentum 8 and 4."""
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    p_at, w_at = address(parameters, tensor, start, PARAM), address(weights, tensor, start, WEIGHT)
    g_at, m_at = w_at, w_at
    if not ON_MOMENTUM:
        g_at = address(grads, tensor, start, GRAD)
    if BUFFER:
        m_at = address(buffers, tensor, start, tl.float32)
    decay, ratio = tl.load(decays + layer), tl.load(scale + layer)
    factor = gradient_factor(clip, CLIP, UPHILL)
    rate, share = 1.0, 1.0
    if RATE_OUTSIDE:
        rate = tl.load(rate_at)
    if DAMPENED:
        share = tl.load(shares + tensor)
    whole = vectors(length, p_at | w_at | g_at | m_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        _step_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, keys + 4 * chunk, decay, ratio, factor, rate,
                 momentum, share, PARAM, WEIGHT, GRAD, MASTER, STOCHASTIC, ON_MOMENTUM, BUFFER, NESTEROV, DAMPENED,
                 RATE_OUTSIDE, CLIP or UPHILL, True)  # fmt: skip
    for begin in range(whole, length, BLOCK):
        _step_of(p_at, w_at, g_at, m_at, begin + tl.arange(0, BLOCK), length, keys + 4 * chunk, decay, ratio, factor, rate,
                 momentum, share, PARAM, WEIGHT, GRAD, MASTER, STOCHASTIC, ON_MOMENTUM, BUFFER, NESTEROV, DAMPENED,
                 RATE_OUTSIDE, CLIP or UPHILL, False)  # fmt: skip


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip, partial,
    momentum, rest,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, ON_MOMENTUM: tl.constexpr,
    DECAYED: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1 of all chunks."""
    measure(tl.program_id(0), parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite,
            clip, partial, tl.num_programs(0), momentum, rest,
            PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, DECAYED, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["rate"])
def _apply(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, scale, finite, clip, rate, shares,
    keys, momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, DAMPENED: tl.constexpr,
    RATE_OUTSIDE: tl.constexpr, TEST: tl.constexpr,
    CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2 of all chunks, backwards, for what pass 1 saw last is what the cache still holds."""
    apply(tl.num_programs(0) - 1 - tl.program_id(0), parameters, weights, grads, buffers, tensor_of, start_of, length_of,
          layer_of, decays, scale, finite, clip, rate, shares, keys, momentum, PARAM, WEIGHT, GRAD, MASTER, STOCHASTIC,
          ON_MOMENTUM, BUFFER, NESTEROV, DAMPENED, RATE_OUTSIDE, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["attempts", "layers", "chunks"], do_not_specialize_on_alignment=["rate"])
def _both(  # type: ignore[no-untyped-def]
    order,  # [2 · chunks] int32
    done,  # see `counters`
    gave_up, attempts,  # see `ratio_is_known`
    first, layers, chunks,
    adapts, stats, scale,  # see `finish_layer`
    parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip, rate, partial,
    shares, keys, momentum, rest, coefficient, eps, phi_low, phi_high, low, high,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, DECAYED: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr,
    DAMPENED: tl.constexpr, RATE_OUTSIDE: tl.constexpr,
    LARC: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    """Both passes in the order of `order_of`."""
    item = next_item(order, done + layers)
    if item >= 0:
        measure(item, parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, finite, clip,
                partial, chunks, momentum, rest, PARAM, WEIGHT, GRAD, MASTER, ON_MOMENTUM, DECAYED, TEST, CLIP, UPHILL,
                BLOCK)  # fmt: skip
        layer = tl.load(layer_of + item)
        if is_last(done, layer, first):
            finish_layer(layer, layers, chunks, first, partial, decays, adapts, rate, stats, scale, coefficient, eps,
                         phi_low, phi_high, low, high, not (ON_MOMENTUM or DECAYED), RATE_OUTSIDE, LARC, SUM_BLOCK)  # fmt: skip
            open_second_pass(done, layer)
    elif ratio_is_known(done, tl.load(layer_of - 1 - item), first, layers, attempts, gave_up):
        apply(-1 - item, parameters, weights, grads, buffers, tensor_of, start_of, length_of, layer_of, decays, scale, finite,
              clip, rate, shares, keys, momentum, PARAM, WEIGHT, GRAD, MASTER, STOCHASTIC, ON_MOMENTUM, BUFFER, NESTEROV,
              DAMPENED, RATE_OUTSIDE, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


def lars(bucket: Bucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LARS step on a bucket, in place; see `reference_lars.lars`. All of it where no other rank has to be asked."""
    layout, device = bucket.layout, bucket.params[0].device
    apart = layout.all_reduce is not None or device in one_launch_fails
    chunks = chunks_of(layout, device) if apart else chunks_of(layout, device, ORDERED_CHUNK)
    finite, clip, tests = guard_arguments(guard, device)
    params, weights, grads, buffers = (
        pointers(layout, name, tensors, device)
        for name, tensors in (
            ("params", bucket.params),
            ("weights", bucket.weights),
            ("grads", bucket.grads),
            ("momentum_buffer", bucket.moments["momentum_buffer"].values if bucket.remembers else []),
        )
    )
    decays = constant(layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(2, chunks.count, device=device)
    rate, momentum = number(bucket.lr, device), float(bucket.group["momentum"])
    dampened, shares = shares_of(bucket, decays)
    keys = rounding_keys(bucket, chunks.layer, chunks.tensor, chunks.layer_start)
    keys = decays if keys is None else keys  # not used then
    outside = bucket.group["trust_norm"] != "momentum" and not bucket.group["lr_in_momentum"]
    both: dict[str, Any] = {
        "PARAM": triton_type(bucket.params[0].dtype),
        "WEIGHT": triton_type(bucket.weights[0].dtype),
        "GRAD": triton_type(bucket.grads[0].dtype),
        "MASTER": bucket.params[0] is not bucket.weights[0],
        "ON_MOMENTUM": (bucket.group["trust_norm"] == "momentum"),
        "DECAYED": (bucket.group["trust_norm"] == "decayed_gradient"),
        "UPHILL": bucket.group["maximize"],
        "BLOCK": block(),
        **tests,
    }
    last: dict[str, Any] = {
        "BUFFER": bool(bucket.remembers),
        "NESTEROV": bucket.group["nesterov"],
        "DAMPENED": dampened,
        "RATE_OUTSIDE": outside,
        "STOCHASTIC": bucket.rounding_seed is not None,
    }
    if not apart:
        eps = 0.0 if both["ON_MOMENTUM"] else float(bucket.group["eps"])
        layers = len(layout.layers)
        stats, scale = torch.empty(3, layers, device=device), torch.empty(layers, device=device)
        launch(
            _both, 2 * chunks.count, order_of(layout, chunks),
            counters(layout, device), gave_up(layout, device), attempts(), chunks.first, layers, chunks.count,
            bucket.trust.adapt.view(torch.int8), stats, scale,
            params, weights, grads, buffers, *chunks.columns, decays, finite, clip, rate, partial,
            shares, keys, momentum, 1 - momentum, float(trust_coefficient(bucket.group)), eps, *bounds(bucket.trust),
            LARC=bucket.trust.larc, SUM_BLOCK=SUM_BLOCK, **both, **last,
        )  # fmt: skip
        count(bucket.steps, guard)
        return LayerNorms(*stats.unbind())
    launch(
        _measure, chunks.count, params, weights, grads, buffers, *chunks.columns, decays, finite, clip, partial,
        momentum, 1 - momentum, **both,
    )  # fmt: skip

    def second(ratio: Tensor) -> None:
        launch(
            _apply, chunks.count, params, weights, grads, buffers, *chunks.columns, decays,
            ratio if outside else (ratio * bucket.lr).contiguous(), finite, clip, rate, shares, keys, momentum,
            **{key: on for key, on in both.items() if key != "DECAYED"}, **last,
        )  # fmt: skip
        count(bucket.steps, guard)

    return FirstPass(norms_of_layers(partial, chunks), second)


def shares_of(bucket: Bucket, unused: Tensor) -> tuple[bool, Tensor]:
    """Whether the momentum is dampened, and [tensors] float32: how much of d it takes, all of the first; else some tensor."""
    if not bucket.steps or not bucket.group["dampening"]:
        return False, unused
    return True, torch.where(torch.stack(bucket.steps).to(unused.device) == 0, 1.0, 1 - bucket.group["dampening"])


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, going, decay, ratio, rate, share, sum_w,
    sum_n, values, table, momentum, rest,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, PLAIN: tl.constexpr,
    ON_MOMENTUM: tl.constexpr,
    DECAYED: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, RATE_OUTSIDE: tl.constexpr, APPLY: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """APPLY: the step; else the sums of squares, with this tile's."""
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read_weight_tile(p_at, w_at, i, inside, PARAM, MASTER, MASKED)
    g = read_gradient(read_tile(g_at, i, inside, MASKED), factor, going, CLIP, UPHILL, TEST)
    if (ON_MOMENTUM or DECAYED) or APPLY:  # Triton 3.2 takes two at a time
        d = tl.where(decay != 0, g + w * decay, g)
    if ON_MOMENTUM or APPLY:
        if ON_MOMENTUM:
            m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
            m = m * momentum + d * rest
            d = m * ratio
        else:
            d = d * ratio
            if BUFFER:
                m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
                m = m * momentum + d * share
                d = d + m * momentum if NESTEROV else m
        if BUFFER and MASKED:  # outside stands what the code 0 stands for
            m = tl.where(inside, m, 0.0)
    if APPLY:
        if RATE_OUTSIDE:
            d = d * rate
        write_weight_tile(w_at, i, w - d, inside, key, WEIGHT, STOCHASTIC, MASKED)
        if MASTER:
            write_rounded(p_at, i, w - d, inside, PARAM, MASKED)
        if BUFFER:
            write_moment(
                m_at, m_scales, i, rows, inside, inside_rows, m, largest_of_rows(m), table, True, PLAIN, MASKED
            )
    else:
        sum_w, sum_n = squares(sum_w, w), squares(sum_n, m if ON_MOMENTUM else d if DECAYED else g)
    return sum_w, sum_n


@triton.jit(do_not_specialize_on_alignment=["lr"])
def _pass(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, buffer_scales,  # [tensors] int64: pointers
    chunks,
    keys,  # [chunks, 4] int32: see `write_weight`
    decays,  # [layers] float32
    scale,  # [layers] float32: ratio, times lr unless it stays outside the momentum; of the second pass
    partial,  # [chunks, 2] float64: Σ w², and Σ g², Σ (g + λw)² or Σ m²; of the first pass
    shares,  # [tensors] float32: how much of d the momentum takes, where it is dampened
    lr, finite, clip,  # 0-d: float32, a bool, a float32
    values, table,
    momentum, rest,  # μ, and 1 - μ taken in float64
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    PLAIN: tl.constexpr,
    ON_MOMENTUM: tl.constexpr, DECAYED: tl.constexpr, BUFFER: tl.constexpr, NESTEROV: tl.constexpr, DAMPENED: tl.constexpr,
    RATE_OUTSIDE: tl.constexpr, ALIGNED: tl.constexpr, APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Both passes. The first reads 8 B an element, on the momentum 9; the second, APPLY, reads 9 and writes 5 (float32)."""
    going = goes_on(finite, TEST)
    if going or not APPLY:
        tensor, base, low, high, layer, at = chunk_head(chunks)
        key = keys + 4 * tl.program_id(0)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(buffers, buffer_scales, tensor, base, at, PLAIN, ALIGNED)
        factor, decay = gradient_factor(clip, CLIP, UPHILL), tl.load(decays + layer)
        ratio, rate = tl.load(scale + layer) if APPLY else 0.0, tl.load(lr)
        share = tl.load(shares + tensor) if DAMPENED else 1.0
        sum_w, sum_n = tl.zeros([ROWS, BLOCK], tl.float64), tl.zeros([ROWS, BLOCK], tl.float64)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                sum_w, sum_n = _tile(
                    p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, going, decay, ratio, rate, share, sum_w,
                    sum_n, values, table, momentum, rest, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, ON_MOMENTUM, DECAYED, BUFFER,
                    NESTEROV, RATE_OUTSIDE, APPLY, TEST, CLIP, UPHILL, ROWS, False)  # fmt: skip
            else:
                sum_w, sum_n = _tile(
                    p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, going, decay, ratio, rate, share, sum_w,
                    sum_n, values, table, momentum, rest, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, ON_MOMENTUM, DECAYED, BUFFER,
                    NESTEROV, RATE_OUTSIDE, APPLY, TEST, CLIP, UPHILL, ROWS, True)  # fmt: skip
        if not APPLY:
            keep_sums(partial, sum_w, sum_n)


def lars8bit(bucket: Bucket, guard: Guard) -> FirstPass:
    """The first pass of a LARS step on a bucket, which changes nothing, and the second, which takes the step in place;
    see `eight_bit.reference_lars.lars`. The norms are ‖w‖, and ‖g‖ or ‖m‖."""
    prepared, device = prepare(bucket, guard), bucket.device
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(prepared.chunks.count, 2, dtype=torch.float64, device=device)
    outside = bucket.group["trust_norm"] != "momentum" and not bucket.group["lr_in_momentum"]
    dampened, shares = shares_of(bucket, decays)

    def run(scale: Tensor, apply: bool) -> None:
        prepared.launch(
            _pass,
            decays,
            scale,
            PerChunk(partial),
            shares,
            bucket.lr,
            prepared.finite,
            prepared.clip,
            *code_tables(device)[:2],
            float(bucket.group["momentum"]),
            1.0 - bucket.group["momentum"],
            ON_MOMENTUM=(bucket.group["trust_norm"] == "momentum"),
            DECAYED=(bucket.group["trust_norm"] == "decayed_gradient"),
            BUFFER=bool(bucket.remembers),
            NESTEROV=bucket.group["nesterov"],
            DAMPENED=dampened,
            RATE_OUTSIDE=outside,
            APPLY=apply,
        )

    def second(ratios: Tensor) -> None:
        run(ratios if outside else (ratios * bucket.lr).contiguous(), True)
        prepared.copy_back()
        count(bucket.steps, guard)

    run(decays, False)
    return FirstPass(norms_of_chunks(partial, prepared.chunks), second)
