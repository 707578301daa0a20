"""What a program of the 8-bit kernels knows of its chunk."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_scale.optim.kernels.fused.tiles import place


@triton.jit
def chunk_head(chunks):  # type: ignore[no-untyped-def]
    """This program's row of `CodedChunks.table`: local tensor, row's begin, first and last element, layer, place in the
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
