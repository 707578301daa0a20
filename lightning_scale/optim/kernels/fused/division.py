"""Exactly rounded float32 quotients and roots in fewer machine instructions, where the numbers are of ordinary size.

A division and a square root look at the size of each number, and have a branch for the others; a block of numbers whose size
is known needs neither.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_scale.optim.kernels.choice import interpreted

# Where there are no PTX instructions; decided when the kernels are, as Triton decides it.
_NO_PTX = tl.constexpr(interpreted() or torch.version.hip is not None)


@triton.jit
def quotient(x, divisor, reciprocal):  # type: ignore[no-untyped-def]
    """x / divisor, from the reciprocal rounded to the nearest float32: its product with x, corrected by what that leaves
    (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000 processor", theorem 8.3).

    The same bits as a division for divisors within 2^-60 and 2^100, finite x, and quotients that are 0 or from 2^-60 up:
    tried for the numerators of every divisor whose quotients lie nearest to the middle of two numbers. Smaller quotients
    may be off in the last bit.
    """
    near = x * reciprocal
    return tl.fma(tl.fma(near, -divisor, x), reciprocal, near)


@triton.jit
def ordinary_quotient(x, divisor):  # type: ignore[no-untyped-def]
    """x / divisor as `quotient`, with a divisor for each x: the instructions that a division takes for ordinary numbers."""
    if _NO_PTX:
        return tl.div_rn(x, divisor)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 minus, inverse, rest;
            neg.f32 minus, $2;
            rcp.approx.ftz.f32 inverse, $2;
            fma.rn.f32 rest, minus, inverse, 0f3F800000;
            fma.rn.f32 inverse, rest, inverse, inverse;
            mul.rn.f32 $0, $1, inverse;
            fma.rn.f32 rest, minus, $0, $1;
            fma.rn.f32 $0, rest, inverse, $0;
            }""",
            "=&f,f,f",
            [x, divisor],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def ordinary_root(x):  # type: ignore[no-untyped-def]
    """√x for finite x from 2^-100 up: the instructions that a square root takes for ordinary numbers."""
    if _NO_PTX:
        return tl.sqrt_rn(x)
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .f32 half, minus, rest;
            rsqrt.approx.ftz.f32 half, $1;
            mul.rn.f32 $0, $1, half;
            mul.rn.f32 half, half, 0f3F000000;
            neg.f32 minus, $0;
            fma.rn.f32 rest, minus, $0, $1;
            fma.rn.f32 $0, rest, half, $0;
            }""",
            "=&f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def fma_to_unit(x, y, z):  # type: ignore[no-untyped-def]
    """xy + z, brought into [0, 1]: one instruction."""
    if _NO_PTX:
        return tl.clamp(tl.fma(x, y, z), 0.0, 1.0)
    else:
        return tl.inline_asm_elementwise(
            "fma.rn.sat.f32 $0, $1, $2, $3;", "=f,f,f,f", [x, y, z], dtype=tl.float32, is_pure=True, pack=1
        )
