"""AdamW with 8-bit moments on CPUs (Loshchilov & Hutter 2017, arXiv 1711.05101): one pass."""

from __future__ import annotations

import numpy as np

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.cpu.elements import (
    BLOCK,
    ascending,
    block_memory,
    bytes_at,
    floats,
    floats_from_memory,
    inlined,
    kernel,
    load_gradient,
    load_weight,
    store_weight,
)
from lightning_scale.optim.backends.cpu.lamb import adam_numbers, direction, update_moments
from lightning_scale.optim.backends.cpu.launch import Launch
from lightning_scale.optim.backends.cpu.quantization import (
    QUANTUM,
    read_signed,
    read_unsigned,
    write_signed,
    write_unsigned,
)


@inlined
def apply(w, u, kept, lr):  # type: ignore[no-untyped-def]
    """w · (1 - lr λ) - lr · u, of one element"""
    return w * kept - u * lr


@inlined
def update(w, m, v, g, numbers, inverse1, inverse2, kept, lr):  # type: ignore[no-untyped-def]
    """The moments, Adam's direction, and the weights of a block."""
    beta1, rest1, beta2, rest2, eps, _ = numbers
    for i in range(w.size):
        new_m, new_v = update_moments(g[i], m[i], v[i], beta1, rest1, beta2, rest2)
        m[i] = new_m
        v[i] = new_v
        w[i] = apply(w[i], direction(new_m, new_v, w[i], inverse1, inverse2, eps, np.float32(0)), kept, lr)


@kernel
def step(turns, tensors, kinds, m_at, v_at, chunks, numbers, inverse1, inverse2, kept, lr):  # type: ignore[no-untyped-def]
    """Of small layers, whose moments are in float32."""
    grads = tensors[2]
    layer, tensor, start, stop, at, _, _, _ = chunks
    factor = numbers[5]
    w_buffer, g_buffer = block_memory(), block_memory()
    for c in ascending(turns):
        t, moved = tensor[c], at[c] - start[c]
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m, v = floats_from_memory(m_at[t], a + moved, b + moved), floats_from_memory(v_at[t], a + moved, b + moved)
            update(w, m, v, g, numbers, inverse1[t], inverse2[t], kept[layer[c]], lr)
            store_weight(w, tensors, kinds, t, a, b, c, start[c])


@kernel
def step_8bit(turns, tensors, kinds, m_at, m_scales, v_at, v_scales, chunks, numbers, inverse1, inverse2, kept, lr):  # type: ignore[no-untyped-def]
    """Of layers whose moments are in 8 bits."""
    grads = tensors[2]
    layer, tensor, start, stop, at, _, block, lead = chunks
    factor = numbers[5]
    w_buffer, g_buffer = block_memory(), block_memory()
    m_buffer, v_buffer = block_memory(), block_memory()
    for c in ascending(turns):
        t, moved, k = tensor[c], at[c] - start[c], block[c]
        a, b = start[c], min(start[c] + QUANTUM - lead[c], stop[c])
        while a < stop[c]:
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m, v = floats(m_buffer, 0, b - a), floats(v_buffer, 0, b - a)
            m_codes, v_codes = bytes_at(m_at[t], a + moved, b + moved), bytes_at(v_at[t], a + moved, b + moved)
            m_scale, v_scale = floats(m_scales[t], k, k + 1), floats(v_scales[t], k, k + 1)
            read_signed(m, m_codes, m_scale[0])
            read_unsigned(v, v_codes, v_scale[0])
            update(w, m, v, g, numbers, inverse1[t], inverse2[t], kept[layer[c]], lr)
            store_weight(w, tensors, kinds, t, a, b, c, start[c])
            write_signed(m_codes, m_scale, m)
            write_unsigned(v_codes, v_scale, v)
            a, b, k = b, min(b + QUANTUM, stop[c]), k + 1


def adamw(bucket: Bucket, guard: Guard) -> None:
    """One AdamW step on a bucket, in place."""
    launch = Launch(bucket, guard, ("step", "exp_avg", "exp_avg_sq"))
    numbers, inverse1, inverse2 = adam_numbers(bucket, launch)
    lr = np.float32(bucket.rate)
    kept = np.float32(1) - lr * launch.decays
    for group in launch.chunks.spans:
        moments = (*launch.moment("exp_avg", group.quantized), *launch.moment("exp_avg_sq", group.quantized))
        launch.run(
            step_8bit if group.quantized else step,
            group, launch.tensors, launch.kinds, *moments, launch.chunks.columns, numbers, inverse1, inverse2, kept, lr,
        )  # fmt: skip
    launch.copy_back()
