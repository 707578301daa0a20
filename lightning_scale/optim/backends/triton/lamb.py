"""LAMB by Triton, with moments in float32 or in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard, LayerNorms
from lightning_scale.optim.backends.device import constant, number
from lightning_scale.optim.backends.triton.adamw import adam_direction, adam_moments, bias_corrections
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
from lightning_scale.optim.layout import Layout


@triton.jit
def _update(m, v, w, correction1, correction2, eps, decay, BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    """u = m̂ / (√v̂ + ε) + λw."""
    if BIAS:
        m = tl.div_rn(m, correction1)
        v = tl.div_rn(v, correction2)
    return tl.div_rn(m, tl.sqrt_rn(v) + eps) + decay * w


@triton.jit
def _moments_of(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, v_at, i, length,
    beta1, rest1, beta2, rest2, correction1, correction2, eps, decay, factor,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr,
    SCALED: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 1; w² and u²."""
    w = read_weight(p_at, w_at, i, length, PARAM, WEIGHT, MASTER, WHOLE)
    g = read(g_at, i, length, GRAD, WHOLE, True)
    m, v = read(m_at, i, length, tl.float32, WHOLE), read(v_at, i, length, tl.float32, WHOLE)
    if SCALED:
        g = g * factor
    new_m = beta1 * m + rest1 * g
    new_v = beta2 * v + rest2 * g * g
    write(m_at, i, length, new_m, tl.float32, WHOLE)
    write(v_at, i, length, new_v, tl.float32, WHOLE)
    u = _update(new_m, new_v, w, correction1, correction2, eps, decay, BIAS)
    if not WHOLE:
        u = tl.where(i < length, u, 0.0)  # with ε = 0, what lies outside is 0/0
    return w * w, u * u


@triton.jit
def measure(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, grads, moments1, moments2,  # [tensors] int64: pointers
    tensor_of, start_of, length_of, layer_of,  # [chunks]
    corrections,  # [tensors, 2] float32
    decays,  # [layers] float32
    finite, clip,  # 0-d: a bool (as int8), a float32
    partial, chunks,  # [2, chunks] float32: Σ w², Σ u²
    beta1, rest1, beta2, rest2, eps,  # rest = 1 - beta, taken in float64
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr,
    BIAS: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1: moments in place, and the chunk's share of ‖w‖² and ‖u‖². Reads 16 B an element (float32), writes 8.

    On a step that is skipped: nothing, and zeros.
    """
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    w_at, g_at = address(weights, tensor, start, WEIGHT), address(grads, tensor, start, GRAD)
    p_at = w_at
    if MASTER:
        p_at = address(parameters, tensor, start, PARAM)
    m_at, v_at = address(moments1, tensor, start, tl.float32), address(moments2, tensor, start, tl.float32)
    correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
    decay = tl.load(decays + layer)
    factor = gradient_factor(clip, CLIP, UPHILL)
    sum_w, sum_u = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    whole = vectors(length, p_at | w_at | g_at | m_at | v_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        ww, uu = _moments_of(p_at, w_at, g_at, m_at, v_at, i, length, beta1, rest1, beta2, rest2, correction1, correction2,
                             eps, decay, factor, PARAM, WEIGHT, GRAD, MASTER, BIAS, CLIP or UPHILL, True)  # fmt: skip
        sum_w += ww
        sum_u += uu
    for begin in range(whole, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        ww, uu = _moments_of(p_at, w_at, g_at, m_at, v_at, i, length, beta1, rest1, beta2, rest2, correction1, correction2,
                             eps, decay, factor, PARAM, WEIGHT, GRAD, MASTER, BIAS, CLIP or UPHILL, False)  # fmt: skip
        sum_w += ww
        sum_u += uu
    tl.store(partial + chunk, tl.sum(sum_w, 0))
    tl.store(partial + chunks + chunk, tl.sum(sum_u, 0))


@triton.jit
def _step_of(  # type: ignore[no-untyped-def]
    p_at, w_at, m_at, v_at, i, length, key, correction1, correction2, eps, decay, rate,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, BIAS: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of pass 2."""
    w = read_weight(p_at, w_at, i, length, PARAM, WEIGHT, MASTER, WHOLE, True)
    m, v = read(m_at, i, length, tl.float32, WHOLE, True), read(v_at, i, length, tl.float32, WHOLE, True)
    w = w - rate * _update(m, v, w, correction1, correction2, eps, decay, BIAS)
    write_weight(w_at, i, length, w, key, WEIGHT, STOCHASTIC, WHOLE, True)
    if MASTER:
        write(p_at, i, length, w, PARAM, WHOLE, True)


@triton.jit
def apply(  # type: ignore[no-untyped-def]
    chunk,
    parameters, weights, moments1, moments2,
    tensor_of, start_of, length_of, layer_of,
    corrections, decays,
    scale,  # [layers] float32: lr · ratio
    finite,
    keys,  # [chunks, 4] int32: see `write_weight`
    eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, BIAS: tl.constexpr,
    TEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2: w ← w - lr · ratio · u. Reads 12 B an element (float32), writes 4."""
    tensor, start, length = tl.load(tensor_of + chunk), tl.load(start_of + chunk), tl.load(length_of + chunk)
    layer = tl.load(layer_of + chunk)
    if TEST:
        length = tl.where(tl.load(finite) != 0, length, 0)
    p_at, w_at = address(parameters, tensor, start, PARAM), address(weights, tensor, start, WEIGHT)
    m_at, v_at = address(moments1, tensor, start, tl.float32), address(moments2, tensor, start, tl.float32)
    correction1, correction2 = tl.load(corrections + 2 * tensor), tl.load(corrections + 2 * tensor + 1)
    decay, rate = tl.load(decays + layer), tl.load(scale + layer)
    whole = vectors(length, p_at | w_at | m_at | v_at, BLOCK)
    for begin in range(0, whole, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        _step_of(p_at, w_at, m_at, v_at, i, length, keys + 4 * chunk, correction1, correction2, eps, decay, rate,
                 PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, True)  # fmt: skip
    for begin in range(whole, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        _step_of(p_at, w_at, m_at, v_at, i, length, keys + 4 * chunk, correction1, correction2, eps, decay, rate,
                 PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, False)  # fmt: skip


_BLOCK = 256


@triton.jit(do_not_specialize=["tensors"])
def _count(  # type: ignore[no-untyped-def]
    steps,  # [tensors] int64: pointers to float32
    betas,  # [2] float64
    finite,  # 0-d: a bool (as int8)
    corrections,  # [tensors, 2] float32
    tensors,
    TEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step more for each tensor, and 1 - β^t of both betas; on a step that is skipped nothing."""
    counted = tensors
    if TEST:
        counted = tl.where(tl.load(finite) != 0, tensors, 0)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(steps + i, mask=i < counted, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(at, mask=i < counted, other=0.0) + 1
    tl.store(at, t, mask=i < counted)
    for which in tl.static_range(2):
        # float32 counts exactly up to 2^24.
        left, square, power = t.to(tl.int32), tl.load(betas + which), tl.full([BLOCK], 1.0, tl.float64)
        for _ in tl.static_range(25):
            power = tl.where(left % 2 == 1, power * square, power)
            square = square * square
            left = left // 2
        tl.store(corrections + 2 * i + which, (1 - power).to(tl.float32), mask=i < counted)


def count_steps(
    layout: Layout, steps: Sequence[Tensor], betas: tuple[float, float], finite: Tensor, test: bool
) -> Tensor:
    """Count this step, unless it is skipped, and find 1 - β^t of the moments, computed in float64.

    Args:
        layout: Keeps the table.
        steps: 0-d float32 tensors, one a local tensor.
        betas: β1, β2.
        finite: 0-d int8, 0 where the step is skipped.
        test: Whether ``finite`` counts.

    Returns:
        [tensors, 2] float32; of a step that is skipped, anything.
    """
    device = steps[0].device
    corrections = torch.empty(len(steps), 2, device=device)
    launch(
        _count,
        -(-len(steps) // _BLOCK),
        pointers(layout, "steps", steps, device),
        constant(layout, "betas", betas, torch.float64, device),
        finite,
        corrections,
        len(steps),
        TEST=test,
        BLOCK=_BLOCK,
    )
    return corrections


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    parameters, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, finite,
    clip, partial, beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, BIAS: tl.constexpr,
    TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 1 of all chunks."""
    measure(tl.program_id(0), parameters, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of,
            corrections, decays, finite, clip, partial, tl.num_programs(0), beta1, rest1, beta2, rest2, eps,
            PARAM, WEIGHT, GRAD, MASTER, BIAS, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip


@triton.jit
def _apply(  # type: ignore[no-untyped-def]
    parameters, weights, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, scale, finite,
    keys, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, BIAS: tl.constexpr,
    TEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pass 2 of all chunks, backwards, for what pass 1 saw last is what the cache still holds."""
    apply(tl.num_programs(0) - 1 - tl.program_id(0), parameters, weights, moments1, moments2, tensor_of, start_of, length_of,
          layer_of, corrections, decays, scale, finite, keys, eps, PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, TEST,
          BLOCK)  # fmt: skip


@triton.jit(do_not_specialize=["attempts", "layers", "chunks"], do_not_specialize_on_alignment=["rate"])
def _both(  # type: ignore[no-untyped-def]
    order,  # [2 · chunks] int32
    done,  # see `counters`
    gave_up, attempts,  # see `ratio_is_known`
    first, layers, chunks,
    adapts, rate, stats, scale,  # see `finish_layer`
    parameters, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections, decays, finite,
    clip, partial, keys, beta1, rest1, beta2, rest2, eps, phi_low, phi_high, low, high,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    BIAS: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, BLOCK: tl.constexpr,
    SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    """Both passes in the order of `order_of`."""
    item = next_item(order, done + layers)
    if item >= 0:
        measure(item, parameters, weights, grads, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections,
                decays, finite, clip, partial, chunks, beta1, rest1, beta2, rest2, eps,
                PARAM, WEIGHT, GRAD, MASTER, BIAS, TEST, CLIP, UPHILL, BLOCK)  # fmt: skip
        layer = tl.load(layer_of + item)
        if is_last(done, layer, first):
            finish_layer(layer, layers, chunks, first, partial, decays, adapts, rate, stats, scale, 1.0, 0.0,
                         phi_low, phi_high, low, high, False, False, False, SUM_BLOCK)  # fmt: skip
            open_second_pass(done, layer)
    elif ratio_is_known(done, tl.load(layer_of - 1 - item), first, layers, attempts, gave_up):
        apply(-1 - item, parameters, weights, moments1, moments2, tensor_of, start_of, length_of, layer_of, corrections,
              decays, scale, finite, keys, eps, PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, TEST, BLOCK)  # fmt: skip


def lamb(bucket: Bucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LAMB step on a bucket, in place; see `reference_lamb.lamb`. All of it where no other rank has to be asked."""
    layout, device = bucket.layout, bucket.params[0].device
    apart = layout.all_reduce is not None or device in one_launch_fails
    chunks = chunks_of(layout, device) if apart else chunks_of(layout, device, ORDERED_CHUNK)
    finite, clip, tests = guard_arguments(guard, device)

    def table(name: str) -> Tensor:
        tensors = bucket.moments[name].values if name in bucket.moments else getattr(bucket, name)
        return pointers(layout, name, tensors, device)

    decays = constant(layout, "decays", bucket.weight_decay, torch.float32, device)
    keys = rounding_keys(bucket, chunks.layer, chunks.tensor, chunks.layer_start)  # before the step is counted
    corrections = count_steps(layout, bucket.steps, bucket.group["betas"], finite, tests["TEST"])
    partial = torch.empty(2, chunks.count, device=device)
    keys = decays if keys is None else keys  # not used then
    beta1, beta2 = bucket.group["betas"]
    moments = (table("exp_avg"), table("exp_avg_sq"))
    numbers = tuple(map(float, (beta1, 1 - beta1, beta2, 1 - beta2, bucket.group["eps"])))
    grad = triton_type(bucket.grads[0].dtype)
    both: dict[str, Any] = {
        "PARAM": triton_type(bucket.params[0].dtype),
        "WEIGHT": triton_type(bucket.weights[0].dtype),
        "MASTER": bucket.params[0] is not bucket.weights[0],
        "BIAS": bucket.group["bias_correction"],
        "TEST": tests["TEST"],
        "BLOCK": block(),
    }
    last: dict[str, Any] = {"STOCHASTIC": bucket.rounding_seed is not None}
    first: dict[str, Any] = {"GRAD": grad, "CLIP": tests["CLIP"], "UPHILL": bucket.group["maximize"]}
    params, weights, grads = table("params"), table("weights"), table("grads")
    if not apart:
        layers = len(layout.layers)
        stats, scale = torch.empty(3, layers, device=device), torch.empty(layers, device=device)
        launch(
            _both, 2 * chunks.count, order_of(layout, chunks),
            counters(layout, device), gave_up(layout, device), attempts(), chunks.first, layers, chunks.count,
            bucket.trust.adapt.view(torch.int8), number(bucket.lr, device), stats, scale,
            params, weights, grads, *moments, *chunks.columns, corrections, decays, finite, clip, partial, keys,
            *numbers, *bounds(bucket.trust), SUM_BLOCK=SUM_BLOCK, **both, **first, **last,
        )  # fmt: skip
        return LayerNorms(*stats.unbind())
    launch(
        _measure, chunks.count, params, weights, grads, *moments, *chunks.columns, corrections, decays, finite, clip,
        partial, *numbers, **both, **first,
    )  # fmt: skip

    def second(ratio: Tensor) -> None:
        launch(
            _apply, chunks.count, params, weights, *moments, *chunks.columns, corrections, decays,
            (ratio * bucket.lr).contiguous(), finite, keys, float(bucket.group["eps"]), **both, **last,
        )  # fmt: skip

    return FirstPass(norms_of_layers(partial, chunks), second)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, going, decay, rate, sum_w, sum_u,
    corrections, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, BIAS: tl.constexpr,
    PLAIN: tl.constexpr,
    APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr,
    ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """APPLY: the step; else the sums of squares, with this tile's."""
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read_weight_tile(p_at, w_at, i, inside, PARAM, MASTER, MASKED)
    g = read_gradient(read_tile(g_at, i, inside, MASKED), factor, going, CLIP, UPHILL, TEST)
    m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, signed_values, PLAIN, MASKED)
    v = read_moment(v_at, v_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
    m, v = adam_moments(g, m, v, beta1, rest1, beta2, rest2)
    if MASKED:  # outside stands what the code 0 stands for
        m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
    m_bits, v_bits = largest_of_rows(m), largest_of_rows(v)
    u = adam_direction(m, v, m_bits, v_bits, corrections, eps, BIAS, MASKED)
    u = tl.where(decay != 0, u + w * decay, u)
    if APPLY:
        w = w - u * rate
        write_weight_tile(w_at, i, w, inside, key, WEIGHT, STOCHASTIC, MASKED)
        if MASTER:
            write_rounded(p_at, i, w, inside, PARAM, MASKED)
        write_moment(m_at, m_scales, i, rows, inside, inside_rows, m, m_bits, signed_table, True, PLAIN, MASKED)
        write_moment(v_at, v_scales, i, rows, inside, inside_rows, v, v_bits, table, False, PLAIN, MASKED)
    else:
        if MASKED:  # and with ε = 0 it may be 0/0
            u = tl.where(inside, u, 0.0)
        sum_w, sum_u = squares(sum_w, w), squares(sum_u, u)
    return sum_w, sum_u


@triton.jit
def _pass(  # type: ignore[no-untyped-def]
    parameters, weights, grads, firsts, first_scales, seconds, second_scales,  # [tensors] int64: pointers
    chunks,
    keys,  # [chunks, 4] int32: see `write_weight`
    corrections,  # [tensors, 4] float32
    decays,  # [layers] float32
    scale,  # [layers] float32: ratio · lr, of the second pass
    partial,  # [chunks, 2] float64: Σ w², Σ u², of the first pass
    finite, clip,  # 0-d: a bool, a float32
    signed_values, signed_table, values, table,
    beta1, rest1, beta2, rest2, eps,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    BIAS: tl.constexpr,
    PLAIN: tl.constexpr, ALIGNED: tl.constexpr, APPLY: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Both passes. The first reads 10 B an element; the second, APPLY, reads 10 and writes 6 (float32)."""
    going = goes_on(finite, TEST)
    if going or not APPLY:
        tensor, base, low, high, layer, at = chunk_head(chunks)
        key = keys + 4 * tl.program_id(0)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(firsts, first_scales, tensor, base, at, PLAIN, ALIGNED)
        v_at, v_scales = moment_places(seconds, second_scales, tensor, base, at, PLAIN, ALIGNED)
        factor, decay = gradient_factor(clip, CLIP, UPHILL), tl.load(decays + layer)
        rate = tl.load(scale + layer) if APPLY else 0.0
        sum_w, sum_u = tl.zeros([ROWS, BLOCK], tl.float64), tl.zeros([ROWS, BLOCK], tl.float64)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                sum_w, sum_u = _tile(
                    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, going, decay, rate, sum_w,
                    sum_u, corrections + 4 * tensor, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2,
                    eps, PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, PLAIN, APPLY, TEST, CLIP, UPHILL, ROWS, False)  # fmt: skip
            else:
                sum_w, sum_u = _tile(
                    p_at, w_at, g_at, m_at, v_at, m_scales, v_scales, begin, low, high, key, factor, going, decay, rate, sum_w,
                    sum_u, corrections + 4 * tensor, signed_values, signed_table, values, table, beta1, rest1, beta2, rest2,
                    eps, PARAM, WEIGHT, MASTER, STOCHASTIC, BIAS, PLAIN, APPLY, TEST, CLIP, UPHILL, ROWS, True)  # fmt: skip
        if not APPLY:
            keep_sums(partial, sum_w, sum_u)


def lamb8bit(bucket: Bucket, guard: Guard) -> FirstPass:
    """The first pass of a LAMB step on a bucket, which changes nothing, and the second, which takes the step in place;
    see `eight_bit.reference_lamb.lamb`."""
    prepared, device = prepare(bucket, guard), bucket.device
    beta1, beta2 = bucket.group["betas"]
    corrections = bias_corrections(bucket)
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    partial = torch.empty(prepared.chunks.count, 2, dtype=torch.float64, device=device)

    def run(scale: Tensor, apply: bool) -> None:
        numbers = map(float, (beta1, 1 - beta1, beta2, 1 - beta2, bucket.group["eps"]))
        prepared.launch(
            _pass,
            corrections,
            decays,
            scale,
            PerChunk(partial),
            prepared.finite,
            prepared.clip,
            *code_tables(device),
            *numbers,
            BIAS=bucket.group["bias_correction"],
            APPLY=apply,
        )

    def second(ratios: Tensor) -> None:
        run((ratios * bucket.lr).contiguous(), True)
        prepared.copy_back()
        count(bucket.steps, guard)

    run(decays, False)
    return FirstPass(norms_of_chunks(partial, prepared.chunks), second)
