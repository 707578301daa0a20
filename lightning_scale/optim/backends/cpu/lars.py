"""LARS on CPUs, with its momentum in float32 or in 8 bits: on the gradient's norm (You et al. 2017, arXiv 1708.03888), with
or without the decay in it, or on the momentum's (You et al. 2019, arXiv 1904.00962, algorithm 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
    load_gradient,
    load_weight,
    prefetch,
    squares,
    store_weight,
)
from lightning_scale.optim.backends.cpu.lamb import move
from lightning_scale.optim.backends.cpu.launch import Group, Launch, float32s, layer_norms, layer_squares, two_passes
from lightning_scale.optim.backends.cpu.quantization import QUANTUM, read_signed, write_signed
from lightning_scale.optim.backends.norms import trust_coefficient


@inlined
def step(w, m, g, decay, inside, momentum, share, own, buffered, outside):  # type: ignore[no-untyped-def]
    """d = inside · (g + λ w);  m = μ m + share · d;  w = w - outside · (own · d + buffered · m)"""
    for i in range(w.size):
        d = (g[i] + w[i] * decay) * inside
        m[i] = m[i] * momentum + d * share
        w[i] -= outside * (own * d + buffered * m[i])


@inlined
def update_momentum(g, m, w, momentum, rest, decay):  # type: ignore[no-untyped-def]
    """m = μ m + (1-μ) (g + λ w)"""
    for i in range(w.size):
        m[i] = m[i] * momentum + (g[i] + w[i] * decay) * rest


@kernel
def measure_decayed(turns, tensors, kinds, chunks, factor, decay, sums):  # type: ignore[no-untyped-def]
    """The first pass on the decayed gradient: Σ w² and Σ (g + λ w)² of each chunk."""
    grads = tensors[2]
    layer, tensor, start, stop, _, _, _, _ = chunks
    w_buffer, g_buffer, d_buffer = block_memory(), block_memory(), block_memory()
    for c in ascending(turns):
        t = tensor[c]
        ww = dd = 0.0
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            d = floats(d_buffer, 0, b - a)
            for i in range(d.size):
                d[i] = g[i] + w[i] * decay[layer[c]]
            ww += squares(w)
            dd += squares(d)
        sums[0, c] = ww
        sums[1, c] = dd


@kernel
def move_by_gradient(turns, tensors, kinds, m_at, chunks, numbers, decay, inside, share, looked):  # type: ignore[no-untyped-def]
    """The whole step where the norms are known. m_at is 0 where nothing is remembered; looked: see `load_weight`."""
    grads = tensors[2]
    layer, tensor, start, stop, at, _, _, _ = chunks
    momentum, own, buffered, outside, factor = numbers
    w_buffer, g_buffer, m_buffer = block_memory(), block_memory(), block_memory()
    for c in descending(turns):
        t, moved = tensor[c], at[c] - start[c]
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load_weight(tensors, kinds, t, a, b, w_buffer, looked)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m = floats(m_buffer, 0, b - a)
            if m_at[t] != 0:
                m = floats_from_memory(m_at[t], a + moved, b + moved)
            else:
                for i in range(m.size):
                    m[i] = np.float32(0)
            step(w, m, g, decay[layer[c]], inside[layer[c]], momentum, share[t], own, buffered, outside)
            store_weight(w, tensors, kinds, t, a, b, c, start[c])


@kernel
def move_by_gradient_8bit(turns, tensors, kinds, m_at, m_scales, chunks, numbers, decay, inside, share, looked):  # type: ignore[no-untyped-def]
    """As `move_by_gradient`, with a momentum in 8 bits."""
    grads = tensors[2]
    layer, tensor, start, stop, at, _, block, lead = chunks
    momentum, own, buffered, outside, factor = numbers
    w_buffer, g_buffer, m_buffer = block_memory(), block_memory(), block_memory()
    for c in descending(turns):
        t, moved, k = tensor[c], at[c] - start[c], block[c]
        a, b = start[c], min(start[c] + QUANTUM - lead[c], stop[c])
        while a < stop[c]:
            w = load_weight(tensors, kinds, t, a, b, w_buffer, looked)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m, codes = floats(m_buffer, 0, b - a), bytes_at(m_at[t], a + moved, b + moved)
            scale = floats(m_scales[t], k, k + 1)
            read_signed(m, codes, scale[0])
            step(w, m, g, decay[layer[c]], inside[layer[c]], momentum, share[t], own, buffered, outside)
            store_weight(w, tensors, kinds, t, a, b, c, start[c])
            write_signed(codes, scale, m)
            a, b, k = b, min(b + QUANTUM, stop[c]), k + 1


@kernel
def measure_momentum(turns, tensors, kinds, m_at, chunks, numbers, decay, sums):  # type: ignore[no-untyped-def]
    """The first pass on the momentum: it is stepped in place; Σ w² and Σ m² of each chunk."""
    grads = tensors[2]
    layer, tensor, start, stop, at, _, _, _ = chunks
    momentum, rest, factor = numbers
    w_buffer, g_buffer = block_memory(), block_memory()
    for c in ascending(turns):
        t, moved = tensor[c], at[c] - start[c]
        ww = mm = 0.0
        for a in range(start[c], stop[c], BLOCK):
            b = min(a + BLOCK, stop[c])
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m = floats(m_at[t], a + moved, b + moved)
            update_momentum(g, m, w, momentum, rest, decay[layer[c]])
            prefetch(m_at[t], a + moved, b + moved)
            ww += squares(w)
            mm += squares(m)
        sums[0, c] = ww
        sums[1, c] = mm


@kernel
def measure_momentum_8bit(turns, tensors, kinds, m_at, m_scales, chunks, numbers, decay, updates, past_cache, sums):  # type: ignore[no-untyped-def]
    """As `measure_momentum`; m is kept as it is before it is rounded to 8 bits."""
    grads = tensors[2]
    layer, tensor, start, stop, at, place, block, lead = chunks
    momentum, rest, factor = numbers
    w_buffer, g_buffer, u_buffer = block_memory(), block_memory(), block_memory()
    for c in ascending(turns):
        t, moved, kept, k = tensor[c], at[c] - start[c], place[c] - start[c], block[c]
        ww = mm = 0.0
        a, b = start[c], min(start[c] + QUANTUM - lead[c], stop[c])
        while a < stop[c]:
            w = load_weight(tensors, kinds, t, a, b, w_buffer)
            g = load_gradient(grads[t], kinds[2], a, b, g_buffer, factor)
            m = kept_floats(updates[t], a + kept, b + kept, past_cache, u_buffer)
            codes = bytes_at(m_at[t], a + moved, b + moved)
            scale = floats(m_scales[t], k, k + 1)
            read_signed(m, codes, scale[0])
            update_momentum(g, m, w, momentum, rest, decay[layer[c]])
            ww += squares(w)
            mm += squares(m)
            keep(updates[t], a + kept, b + kept, past_cache, u_buffer)
            write_signed(codes, scale, m)
            a, b, k = b, min(b + QUANTUM, stop[c]), k + 1
        sums[0, c] = ww
        sums[1, c] = mm


def lars(bucket: Bucket, guard: Guard) -> FirstPass | LayerNorms:
    """One LARS step on a bucket, in place."""
    group = bucket.group
    remembers = group["momentum"] != 0 or group["trust_norm"] == "momentum"
    needs = ("step", "momentum_buffer") if group["dampening"] else ("momentum_buffer",)
    launch = Launch(bucket, guard, needs if remembers else ())
    return _on_momentum(bucket, launch) if bucket.group["trust_norm"] == "momentum" else _on_gradient(bucket, launch)


def _on_gradient(bucket: Bucket, launch: Launch) -> FirstPass:
    group = bucket.group
    norms = _norms(bucket, launch)
    own, buffered = nesterov(bucket)
    outside = 1.0 if group["lr_in_momentum"] else bucket.rate

    def second(ratios: Tensor) -> None:
        inside = (ratios * bucket.lr if group["lr_in_momentum"] else ratios).numpy()
        move_all(launch, (group["momentum"], own, buffered, outside), inside, shares(bucket, launch), True)

    return FirstPass(norms, second)


def _norms(bucket: Bucket, launch: Launch) -> Tensor:
    """[2, layers] float64: ‖w‖, and ‖g‖ or ‖g + λ w‖ of the clipped gradient."""
    if bucket.group["trust_norm"] == "decayed_gradient":
        chunks = launch.chunks
        for group in chunks.spans:
            launch.run(
                measure_decayed, group, launch.tensors, launch.kinds, chunks.columns, launch.factor, launch.decays, chunks.sums
            )  # fmt: skip
        return layer_norms(bucket.layout, chunks)
    norms = bucket.norms
    if norms is None:
        squares = (launch.weight_squares(), layer_squares(bucket.layout, launch.grads))
        norms = torch.stack([own.sqrt() for own in squares])
    return norms * torch.tensor([[1.0], [abs(float(launch.factor))]], dtype=torch.float64, device="cpu")


def shares(bucket: Bucket, launch: Launch) -> np.ndarray:
    """[tensors] float32: how much of d the momentum takes, all of the first, and of later ones what dampening leaves.

    This counts the step where steps are counted.
    """
    if not bucket.steps:
        return np.ones(len(bucket.params), np.float32)
    return np.where(launch.count_steps() == 1, np.float32(1), np.float32(1 - bucket.group["dampening"]))


def nesterov(bucket: Bucket) -> tuple[float, float]:
    """How much of d, and of the momentum, is taken off the weights."""
    if not bucket.remembers:
        return 1.0, 0.0
    return (1.0, bucket.group["momentum"]) if bucket.group["nesterov"] else (0.0, 1.0)


def move_all(
    launch: Launch, numbers: tuple[float, ...], inside: np.ndarray, share: np.ndarray, looked: bool = False
) -> None:
    """A step in one pass over all chunks: of LARS, where the norms are known, or of SGD, which has not looked at weights."""
    for group in launch.chunks.spans:
        moment = launch.moment("momentum_buffer", group.quantized)
        launch.run(
            move_by_gradient_8bit if group.quantized else move_by_gradient,
            group, launch.tensors, launch.kinds, *moment, launch.chunks.columns, (*float32s(*numbers), launch.factor),
            launch.decays, inside, share, looked,
        )  # fmt: skip
    launch.copy_back()


def _on_momentum(bucket: Bucket, launch: Launch) -> FirstPass | LayerNorms:
    momentum = bucket.group["momentum"]
    if bucket.steps:
        launch.count_steps()
    numbers = (*float32s(momentum, 1 - momentum), launch.factor)
    updates = launch.scratch() if any(group.quantized for group in launch.chunks.groups) else None
    chunks = launch.chunks

    def first(group: Group) -> None:
        moment = launch.moment("momentum_buffer", group.quantized)
        common = (launch.tensors, launch.kinds, *moment, chunks.columns, numbers, launch.decays)
        if group.quantized:
            launch.run(measure_momentum_8bit, group, *common, updates, chunks.past_cache(group), chunks.sums)
        else:
            launch.run(measure_momentum, group, *common, chunks.sums)

    def second(group: Group, rate: np.ndarray) -> None:
        kept = (updates, chunks.place) if group.quantized else (*launch.moment("momentum_buffer", False), chunks.at)
        launch.run(move, group, launch.tensors, launch.kinds, chunks.columns, *kept, rate)

    return two_passes(bucket, launch, first, second, trust_coefficient(bucket.group))
