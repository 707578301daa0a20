"""LAMB on CPUs (You et al. 2019, arXiv 1904.00962, algorithm 2), with moments in float32 or in 8 bits."""

from __future__ import annotations

import numpy as np

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard, LayerNorms
from lightning_scale.optim.backends.cpu.elements import (
    BLOCK,
    ascending,
    block_memory,
    bytes_at,
    descending,
    floats,
    floats_from_memory,
    inlined,
    keep,
    kept_floats,
    kernel,
    load,
    load_gradient,
    load_weight,
    prefetch,
    squares,
    store_weight,
)
from lightning_scale.optim.backends.cpu.launch import Group, Launch, float32s, two_passes
from lightning_scale.optim.backends.cpu.quantization import (
    QUANTUM,
    read_signed,
    read_unsigned,
    write_signed,
    write_unsigned,
)


@inlined
def update_moments(g, m, v, beta1, rest1, beta2, rest2):  # type: ignore[no-untyped-def]
    """m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g², of one element"""
    return m * beta1 + g * rest1, v * beta2 + g * rest2 * g


@inlined
def direction(m, v, w, inverse1, inverse2, eps, decay):  # type: ignore[no-untyped-def]
    """u = m̂ / (√v̂ + ε) + λ w, with m̂ = m / (1-β1^t) and v̂ = v / (1-β2^t), of one element"""
    return m * inverse1 / (np.sqrt(v * inverse2) + eps) + w * decay


@inlined
def update(u, m, v, w, g, numbers, inverse1, inverse2, decay):  # type: ignore[no-untyped-def]
    """Both, of a block. One loop: while an element is computed, the next ones come from memory."""
    beta1, rest1, beta2, rest2, eps, _ = numbers
    for i in range(u.size):
        new_m, new_v = update_moments(g[i], m[i], v[i], beta1, rest1, beta2, rest2)
        m[i] = new_m
        v[i] = new_v
        u[i] = direction(new_m, new_v, w[i], inverse1, inverse2, eps, decay)


@inlined
def apply(w, u, rate):  # type: ignore[no-untyped-def]
    """w = w - rate · u"""
    for i in range(w.size):
        w[i] -= rate * u[i]


@kernel
def measure(turns, tensors, kinds, m_at, v_at, chunks, numbers, inverse1, inverse2, decay, updates, past_cache, sums):  # type: ignore[no-untyped-def]
    """The first pass: moments in place; u is kept; Σ w² and Σ u² of each chunk."""
    grads = tensors[2]
    layer, tensor, start, stop, at, place, _, _ = chunks
    factor = numbers[5]
    w_buffer, g_buffer, u_buffer = block_memory(), block_memory(), block_memory()
    for c in ascending(turns):
        t, moved, kept = tensor[c], at[c] - start[c], place[c] - start[c]
        ww = uu = 0.0
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m, v = floats(m_at[t], a + moved, b + moved), floats(v_at[t], a + moved, b + moved)
            u = kept_floats(updates[t], a + kept, b + kept, past_cache, u_buffer)
            update(u, m, v, w, g, numbers, inverse1[t], inverse2[t], decay[layer[c]])
            prefetch(m_at[t], a + moved, b + moved)
            ww += squares(w)
            prefetch(v_at[t], a + moved, b + moved)
            uu += squares(u)
            keep(updates[t], a + kept, b + kept, past_cache, u_buffer)
        sums[0, c] = ww
        sums[1, c] = uu


@kernel
def measure_8bit(  # type: ignore[no-untyped-def]
    turns,
    tensors,
    kinds,
    m_at,
    m_scales,
    v_at,
    v_scales,
    chunks,
    numbers,
    inverse1,
    inverse2,
    decay,
    updates,
    past_cache,
    sums,
):
    """As `measure`: moments are read, stepped, and rounded to 8 bits, block by block of the layer's grid."""
    grads = tensors[2]
    layer, tensor, start, stop, at, place, block, lead = chunks
    factor = numbers[5]
    w_buffer, g_buffer = block_memory(), block_memory()
    m_buffer, v_buffer, u_buffer = block_memory(), block_memory(), block_memory()
    for c in ascending(turns):
        t, moved, kept, k = tensor[c], at[c] - start[c], place[c] - start[c], block[c]
        ww = uu = 0.0
        a, b = start[c], min(start[c] + QUANTUM - lead[c], stop[c])
        while a < stop[c]:
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m, v = floats(m_buffer, 0, b - a), floats(v_buffer, 0, b - a)
            u = kept_floats(updates[t], a + kept, b + kept, past_cache, u_buffer)
            m_codes, v_codes = bytes_at(m_at[t], a + moved, b + moved), bytes_at(v_at[t], a + moved, b + moved)
            m_scale, v_scale = floats(m_scales[t], k, k + 1), floats(v_scales[t], k, k + 1)
            read_signed(m, m_codes, m_scale[0])
            read_unsigned(v, v_codes, v_scale[0])
            update(u, m, v, w, g, numbers, inverse1[t], inverse2[t], decay[layer[c]])
            ww += squares(w)
            uu += squares(u)
            keep(updates[t], a + kept, b + kept, past_cache, u_buffer)
            write_signed(m_codes, m_scale, m)
            write_unsigned(v_codes, v_scale, v)
            a, b, k = b, min(b + QUANTUM, stop[c]), k + 1
        sums[0, c] = ww
        sums[1, c] = uu


@kernel
def move(turns, tensors, kinds, chunks, updates, at, rate):  # type: ignore[no-untyped-def]
    """The second pass: w = w - rate · u; backwards, for what was read last is what the cache still holds.

    updates: [tensors] addresses of u; at: where in it a chunk begins.
    """
    weights, _, _, _ = tensors
    layer, tensor, start, stop, _, _, _, _ = chunks
    buffer = block_memory()
    for c in descending(turns):
        t, moved = tensor[c], at[c] - start[c]
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load(weights[t], kinds[0], a, b, buffer)
            apply(w, floats_from_memory(updates[t], a + moved, b + moved), rate[layer[c]])
            store_weight(w, tensors, kinds, t, a, b, c, start[c])


def adam_numbers(bucket: Bucket, launch: Launch) -> tuple[tuple[np.float32, ...], np.ndarray, np.ndarray]:
    """β1, 1-β1, β2, 1-β2, ε and the gradient's factor; 1/(1-β1^t) and 1/(1-β2^t) of each tensor's step, which is counted."""
    steps = launch.count_steps()
    betas = bucket.group["betas"]
    if bucket.group.get("bias_correction", True):
        # Powers by Python: numpy's differ in a last bit with the number of tensors.
        if len(steps) and (steps == steps[0]).all():
            inverses = [np.full(len(steps), 1 / (1 - beta ** float(steps[0])), np.float32) for beta in betas]
        else:
            inverses = [np.array([1 / (1 - beta**t) for t in steps.tolist()], np.float32) for beta in betas]
    else:
        inverses = [np.ones(len(steps), np.float32)] * 2
    rests = (betas[0], 1 - betas[0], betas[1], 1 - betas[1], bucket.group["eps"])
    return (*float32s(*rests), launch.factor), inverses[0], inverses[1]


def lamb(bucket: Bucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LAMB step on a bucket, in place: all of it where no other rank has to be asked."""
    launch = Launch(bucket, guard, ("step", "exp_avg", "exp_avg_sq"))
    numbers, inverse1, inverse2 = adam_numbers(bucket, launch)
    updates = launch.scratch()

    def first(group: Group) -> None:
        moments = (*launch.moment("exp_avg", group.quantized), *launch.moment("exp_avg_sq", group.quantized))
        launch.run(
            measure_8bit if group.quantized else measure,
            group, launch.tensors, launch.kinds, *moments, launch.chunks.columns, numbers, inverse1, inverse2, launch.decays,
            updates, launch.chunks.past_cache(group), launch.chunks.sums,
        )  # fmt: skip

    def second(group: Group, rate: np.ndarray) -> None:
        launch.run(move, group, launch.tensors, launch.kinds, launch.chunks.columns, updates, launch.chunks.place, rate)

    return two_passes(bucket, launch, first, second)
