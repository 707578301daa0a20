"""Exactly rounded float32 quotients by a number that many share: three operations instead of a division's ten."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quotient(x, divisor, reciprocal):  # type: ignore[no-untyped-def]
    """x / divisor, from the reciprocal rounded to the nearest float32: its product with x, corrected by what that leaves
    (Markstein 1990, "Computation of elementary functions on the IBM RISC System/6000 processor", theorem 8.3).

    The same bits as a division for divisors within 2^-100 and 2^100 and quotients that are 0 or from 2^-76 up to float32's
    largest (for divisors up to 1: where x is 0 or from 2^-100 up). Smaller ones may be off in the last bit, and an infinite
    x gives NaN.
    """
    near = x * reciprocal
    return tl.fma(tl.fma(-near, divisor, x), reciprocal, near)
