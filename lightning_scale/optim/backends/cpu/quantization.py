"""The 8-bit code of a block of 256 inside kernels: exact, one look into a table for each element either way, no search.

The tables are global: numba makes them constants of the program, which no store can change, so that loops are vectorized.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_scale.optim.backends.cpu.elements import as_bits, as_float, inlined
from lightning_scale.optim.quantization import BLOCK, SIGNED, UNSIGNED, Code

QUANTUM = BLOCK
"""Elements that share a scale."""
_SIGNED_VALUES, _UNSIGNED_VALUES = SIGNED.values().numpy(), UNSIGNED.values().numpy()
_ONE, _INFINITE, _LARGEST, _MAGNITUDE = map(np.uint32, (0x3F80, 0x7F800000, 0x7F7FFFFF, 0x7FFFFFFF))
_HALF, _LOW, _TOP = np.uint32(16), np.uint32(0xFFFF), np.uint32(254)


def cells(code: Code) -> NDArray[np.uint32]:
    """By a magnitude's upper 16 bits: the code << 16, plus what its lower 16 bits must carry over to be above a threshold."""
    all_thresholds = code.thresholds().numpy()
    first = (np.arange(int(_ONE) + 1) << 16).astype(np.uint32).view(np.float32)
    table: NDArray[Any] = np.searchsorted(all_thresholds, first, side="left").astype(np.uint32) << _HALF
    bits = all_thresholds[all_thresholds >= 0].view(np.uint32)
    assert len(set(bits >> _HALF)) == len(bits), "two thresholds share their upper bits"
    table[bits >> _HALF] += _LOW - (bits & _LOW)
    return table


_SIGNED_CELLS, _UNSIGNED_CELLS = cells(SIGNED), cells(UNSIGNED)


@inlined
def absmax(x):  # type: ignore[no-untyped-def]
    """The largest magnitude, NaN where one is; Inf counts as the largest finite number. (By bits, which ascend with it.)"""
    top = np.uint32(0)
    for i in range(x.size):
        top = max(top, as_bits(x[i]) & _MAGNITUDE)
    return as_float(_LARGEST if top == _INFINITE else top)


@inlined
def read_signed(out, codes, scale):  # type: ignore[no-untyped-def]
    """A block of first moments or momentum."""
    for i in range(codes.size):
        out[i] = _SIGNED_VALUES[codes[i]] * scale


@inlined
def read_unsigned(out, codes, scale):  # type: ignore[no-untyped-def]
    """A block of second moments."""
    for i in range(codes.size):
        out[i] = _UNSIGNED_VALUES[codes[i]] * scale


@inlined
def write_signed(codes, scale, x):  # type: ignore[no-untyped-def]
    """Round a block to the nearest codes, and store its scale."""
    scale[0] = absmax(x)
    divisor = scale[0] if scale[0] != 0 else np.float32(1)
    for i in range(x.size):
        bits = as_bits(x[i] / divisor)
        code = (_SIGNED_CELLS[min((bits & _MAGNITUDE) >> _HALF, _ONE)] + (bits & _LOW)) >> _HALF
        codes[i] = code if bits <= _MAGNITUDE else _TOP - min(code, _TOP)


@inlined
def write_unsigned(codes, scale, x):  # type: ignore[no-untyped-def]
    """As `write_signed`, of numbers that are never negative."""
    scale[0] = absmax(x)
    divisor = scale[0] if scale[0] != 0 else np.float32(1)
    for i in range(x.size):
        bits = as_bits(x[i] / divisor)
        codes[i] = (_UNSIGNED_CELLS[min(bits >> _HALF, _ONE)] + (bits & _LOW)) >> _HALF
