"""What every kernel does with elements: it finds them, reads them as float32, and rounds them to their own type."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_scale.optim.backends.choice import interpreted

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for a type."""
    return _TYPES[dtype]


@triton.jit
def address(table, tensor, start, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where an element of a tensor of a table of pointers lies, as a number."""
    # (Triton 3.2 asks no constexpr for its attributes.)
    BITS: tl.constexpr = tl.full((), 0, DTYPE).dtype.primitive_bitwidth
    return tl.load(table + tensor) + start.to(tl.int64) * (BITS // 8)


@triton.jit
def vectors(length, addresses, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many elements are to be read in whole blocks by 16 bytes a thread: none where an address forbids it.

    ``addresses``: of all tensors that are read or written, bitwise or.
    """
    return tl.where(addresses % 16 == 0, length // BLOCK * BLOCK, 0)


@triton.jit
def read(at, i, length, DTYPE: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """Elements i from an address on, in float32.

    WHOLE: all are below the length, and the address is one of 16 bytes. LAST: nobody reads them again in this step, so
    they need not stay in the cache.
    """
    if WHOLE:
        # Says nothing new of an address that is aligned, but the compiler knows it then, and that no mask is needed.
        p = tl.multiple_of((at // 16 * 16).to(tl.pointer_type(DTYPE)), 16)
        return tl.load(p + i, eviction_policy="evict_first" if LAST else "").to(tl.float32)
    else:
        return tl.load(at.to(tl.pointer_type(DTYPE)) + i, mask=i < length, other=0.0).to(tl.float32)


@triton.jit
def write(at, i, length, x, DTYPE: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """float32 elements, rounded to their type; see `read`."""
    _write(at, i, length, rounded(x, DTYPE), DTYPE, WHOLE, LAST)


@triton.jit
def _write(at, i, length, x, DTYPE: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    if WHOLE:
        p = tl.multiple_of((at // 16 * 16).to(tl.pointer_type(DTYPE)), 16)
        tl.store(p + i, x, eviction_policy="evict_first" if LAST else "")
    else:
        tl.store(at.to(tl.pointer_type(DTYPE)) + i, x, mask=i < length)


@triton.jit
def write_weight(  # type: ignore[no-untyped-def]
    at, i, length, x, key, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False
):  # fmt: skip
    """As `write`; where it is STOCHASTIC by the random bits of a chunk whose row of `rounding.keys` lies at ``key``."""
    if STOCHASTIC:
        _write(at, i, length, _stochastically_rounded(x, i, key), DTYPE, WHOLE, LAST)
    else:
        write(at, i, length, x, DTYPE, WHOLE, LAST)


@triton.jit
def _mixed(x):  # type: ignore[no-untyped-def]
    """`rounding.mixed`, of uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _stochastically_rounded(x, i, key):  # type: ignore[no-untyped-def]
    """`rounding.stochastically_rounded` by `rounding.random_bits`.

    i: the elements' places, counted from the first one of the row of `rounding.keys` that lies at ``key``.
    """
    first = tl.load(key).to(tl.uint32, bitcast=True)
    one, other = tl.load(key + 1).to(tl.uint32, bitcast=True), tl.load(key + 2).to(tl.uint32, bitcast=True)
    noise = _mixed(_mixed((i.to(tl.uint32) + first) ^ one) ^ other) >> 16
    whole = x.to(tl.uint32, bitcast=True)
    magnitude = whole & 0x7FFFFFFF
    kept = (magnitude + noise) >> 16
    kept = tl.where(kept > 0x7F7F, 0x7F7F, kept)
    kept = tl.where(magnitude < 0x7F800000, kept, 0x7F80) | ((whole >> 16) & 0x8000)
    kept = tl.where(magnitude > 0x7F800000, 0x7FC0, kept)
    return kept.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 to the nearest value of a type, of two the even one; Triton's interpreter cuts bfloat16 off."""
    if tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x != x, 0x7FC0, bits)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


# Which way rounding to bfloat16 is written; decided when the kernels are, as Triton decides it.
_INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _nearest(x, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 to the nearest value of a type, in the fewest instructions."""
    if _INTERPRETED:
        return rounded(x, DTYPE)
    else:
        return x.to(DTYPE)


@triton.jit
def read_weight(  # type: ignore[no-untyped-def]
    p_at, w_at, i, length,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, MASTER: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr = False,
):  # fmt: skip
    """Weights as `read` does. Of a MASTER the parameter's own, where that is no longer the rounded master: somebody has written
    into it."""
    w = read(w_at, i, length, WEIGHT, WHOLE, LAST)
    if MASTER:
        p = read(p_at, i, length, PARAM, WHOLE, LAST)
        w = tl.where(_nearest(w, PARAM).to(tl.float32) == p, w, p)
    return w


@triton.jit
def gradient_factor(clip, CLIP: tl.constexpr, UPHILL: tl.constexpr):  # type: ignore[no-untyped-def]
    """What gradients are multiplied with: the clip's factor, negative where the step goes uphill."""
    factor = 1.0
    if CLIP:
        factor = tl.load(clip)
    if UPHILL:
        factor = -factor
    return factor


BLOCK = tl.constexpr(256)


@triton.jit
def tile(ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, 256] int32: the elements' places, counted from the tile's first."""
    return tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def place(base, first, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The pointer to an element; where it is ALIGNED, that of four whole elements, which one load then takes."""
    at = base.to(tl.pointer_type(DTYPE)) + first
    if ALIGNED:
        BITS: tl.constexpr = tl.full((), 0, DTYPE).dtype.primitive_bitwidth  # as in elements.py
        at = tl.multiple_of(at, BITS // 2)
    return at


@triton.jit
def read_tile(at, i, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elements; 0 outside, where some may be."""
    if MASKED:
        return tl.load(at + i, mask=inside, other=0)
    else:
        return tl.load(at + i)


@triton.jit
def read_weight_tile(p_at, w_at, i, inside, PARAM: tl.constexpr, MASTER: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights in float32; of a MASTER as `read_weight` says."""
    w = read_tile(w_at, i, inside, MASKED).to(tl.float32)
    if MASTER:
        p = read_tile(p_at, i, inside, MASKED).to(tl.float32)
        w = tl.where(_nearest(w, PARAM).to(tl.float32) == p, w, p)
    return w


@triton.jit
def write_tile(at, i, values, inside, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the elements that are inside."""
    if MASKED:
        tl.store(at + i, values, mask=inside)
    else:
        tl.store(at + i, values)


@triton.jit
def write_rounded(at, i, values, inside, DTYPE: tl.constexpr, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store float32 numbers, each rounded to the nearest value of a type."""
    write_tile(at, i, _nearest(values, DTYPE), inside, MASKED)


@triton.jit
def write_weight_tile(  # type: ignore[no-untyped-def]
    at, i, values, inside, key, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """As `write_rounded`; where it is STOCHASTIC as `write_weight`."""
    if STOCHASTIC:
        write_tile(at, i, _stochastically_rounded(values, i, key), inside, MASKED)
    else:
        write_rounded(at, i, values, inside, DTYPE, MASKED)


@triton.jit
def chunk_head(chunks):  # type: ignore[no-untyped-def]
    """This program's row of `QuantizedChunks.table`: local tensor, row's begin, first and last element, layer, place in the
    state."""
    row = chunks + 6 * tl.program_id(0)
    tensor, base = tl.load(row), tl.load(row + 1)
    low, high = tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32)
    return tensor, base, low, high, tl.load(row + 4), tl.load(row + 5)


@triton.jit
def parameter_places(  # type: ignore[no-untyped-def]
    parameters, weights, grads, tensor, base,
    PARAM: tl.constexpr, WEIGHT: tl.constexpr, GRAD: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Pointers to this chunk's parameters, to what is stepped, and to gradients, from [tensors] int64."""
    p_at = place(tl.load(parameters + tensor), base, PARAM, ALIGNED)
    w_at = place(tl.load(weights + tensor), base, WEIGHT, ALIGNED)
    return p_at, w_at, place(tl.load(grads + tensor), base, GRAD, ALIGNED)


@triton.jit
def moment_places(moments, scales, tensor, base, at, PLAIN: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers to one kind of this chunk's moments (codes, or where PLAIN float32), and to their scales."""
    m_scales = tl.load(scales + tensor).to(tl.pointer_type(tl.float32)) + at
    if PLAIN:
        m_at = place(tl.load(moments + tensor), at, tl.float32, ALIGNED)
    else:
        m_at = place(tl.load(moments + tensor), base, tl.uint8, ALIGNED)
    return m_at, m_scales


@triton.jit
def goes_on(finite, TEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether the step is taken."""
    going = True
    if TEST:
        going = tl.load(finite) != 0
    return going


@triton.jit
def read_gradient(g, factor, going, CLIP: tl.constexpr, UPHILL: tl.constexpr, TEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Gradients as they stand to float32, clipped and downhill, and zero on a step that is not taken."""
    g = g.to(tl.float32)
    if CLIP or UPHILL:
        g = g * factor
    if TEST:
        g = tl.where(going, g, 0.0)
    return g
