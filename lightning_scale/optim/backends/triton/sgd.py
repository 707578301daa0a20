"""SGD with an 8-bit momentum in one pass over the elements; see `eight_bit.reference_sgd` for what it computes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.device import constant
from lightning_scale.optim.backends.triton.elements import (
    BLOCK,
    chunk_head,
    goes_on,
    gradient_factor,
    moment_places,
    parameter_places,
    read_gradient,
    read_tile,
    read_weight_tile,
    tile,
    write_rounded,
    write_weight_tile,
)
from lightning_scale.optim.backends.triton.launch import code_tables, count, prepare
from lightning_scale.optim.backends.triton.quantization import largest_of_rows, read_moment, write_moment


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, decay, rate, share, momentum, values, table,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, PLAIN: tl.constexpr,
    BUFFER: tl.constexpr,
    NESTEROV: tl.constexpr, CLIP: tl.constexpr, UPHILL: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    i = begin + tile(ROWS)
    rows = begin // BLOCK + tl.arange(0, ROWS)
    inside, inside_rows = (i >= low) & (i < high), rows * BLOCK < high
    w = read_weight_tile(p_at, w_at, i, inside, PARAM, MASTER, MASKED)
    d = read_gradient(read_tile(g_at, i, inside, MASKED), factor, True, CLIP, UPHILL, False)
    d = tl.where(decay != 0, d + w * decay, d)
    if BUFFER:
        m = read_moment(m_at, m_scales, i, rows, inside, inside_rows, values, PLAIN, MASKED)
        m = m * momentum + d * share
        d = d + m * momentum if NESTEROV else m
        if MASKED:  # outside stands what the code 0 stands for
            m = tl.where(inside, m, 0.0)
        write_moment(m_at, m_scales, i, rows, inside, inside_rows, m, largest_of_rows(m), table, True, PLAIN, MASKED)
    w = w - d * rate
    write_weight_tile(w_at, i, w, inside, key, WEIGHT, STOCHASTIC, MASKED)
    if MASTER:
        write_rounded(p_at, i, w, inside, PARAM, MASKED)


@triton.jit(do_not_specialize_on_alignment=["lr"])
def _step(  # type: ignore[no-untyped-def]
    parameters, weights, grads, buffers, buffer_scales,  # [tensors] int64: pointers
    chunks,
    keys,  # [chunks, 4] int32: see `write_weight`
    decays,  # [layers] float32
    share_of,  # [tensors] float32: how much of a gradient the momentum takes
    lr, finite, clip,  # 0-d: float32, a bool, a float32
    values, table, momentum,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr,
    PLAIN: tl.constexpr,
    BUFFER: tl.constexpr, NESTEROV: tl.constexpr, ALIGNED: tl.constexpr, TEST: tl.constexpr, CLIP: tl.constexpr,
    UPHILL: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """w ← w - lr · buf. Reads 9 B an element and writes 5 (float32)."""
    if goes_on(finite, TEST):
        tensor, base, low, high, layer, at = chunk_head(chunks)
        key = keys + 4 * tl.program_id(0)
        p_at, w_at, g_at = parameter_places(parameters, weights, grads, tensor, base, PARAM, WEIGHT, GRAD, ALIGNED)
        m_at, m_scales = moment_places(buffers, buffer_scales, tensor, base, at, PLAIN, ALIGNED)
        share = tl.load(share_of + tensor) if BUFFER else 1.0
        factor, decay, rate = gradient_factor(clip, CLIP, UPHILL), tl.load(decays + layer), tl.load(lr)
        for begin in range(0, high, ROWS * BLOCK):
            if (begin >= low) & (begin + ROWS * BLOCK <= high):
                _tile(p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, decay, rate, share, momentum, values,
                      table, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, BUFFER, NESTEROV, CLIP, UPHILL, ROWS, False)  # fmt: skip
            else:
                _tile(p_at, w_at, g_at, m_at, m_scales, begin, low, high, key, factor, decay, rate, share, momentum, values,
                      table, PARAM, WEIGHT, MASTER, STOCHASTIC, PLAIN, BUFFER, NESTEROV, CLIP, UPHILL, ROWS, True)  # fmt: skip


def sgd8bit(bucket: Bucket, guard: Guard) -> None:
    """One SGD step on a bucket, in place; see `eight_bit.reference_sgd.sgd`."""
    prepared, device = prepare(bucket, guard), bucket.device
    decays = constant(bucket.layout, "decays", bucket.weight_decay, torch.float32, device)
    share = decays
    if bucket.remembers:
        share = torch.where(torch.stack(bucket.steps).to(device) == 0, 1.0, 1 - bucket.group["dampening"])
    prepared.launch(
        _step,
        decays,
        share,
        bucket.lr,
        prepared.finite,
        prepared.clip,
        *code_tables(device)[:2],
        float(bucket.group["momentum"]),
        BUFFER=bool(bucket.remembers),
        NESTEROV=bucket.group["nesterov"],
    )
    prepared.copy_back()
    count(bucket.steps, guard)
