"""The 8-bit code of a block of 256 inside kernels: read by a table, written by arithmetic, without a search.

The tables are global: numba makes them constants of the program, which no store can change, so that loops are vectorized.
"""

from __future__ import annotations

import numpy as np

from lightning_scale.optim.backends.cpu.elements import as_bits, as_float, inlined, wide_vectors
from lightning_scale.optim.quantization import BLOCK, SIGNED, UNSIGNED

QUANTUM = BLOCK
"""Elements that share a scale."""
_SIGNED_VALUES, _UNSIGNED_VALUES = SIGNED.values().numpy(), UNSIGNED.values().numpy()
_INFINITE, _LARGEST, _MAGNITUDE, _SIGN = map(np.uint32, (0x7F800000, 0x7F7FFFFF, 0x7FFFFFFF, 0x80000000))

# All numbers of the loops are float32: integers would become 64 bits wide.
_NONE, _ONE, _SIGNED_ZERO = map(np.float32, (0, 1, SIGNED.zero))
_SIGNED_PARTS, _UNSIGNED_PARTS = np.float32(SIGNED.parts(6)), np.float32(UNSIGNED.parts(6))
_SIGNED_FIRST, _SIGNED_LAST = SIGNED.thresholds().numpy()[[127, 254]]
_UNSIGNED_FIRST, _UNSIGNED_LAST = UNSIGNED.thresholds().numpy()[[0, 254]]
_SIGNED_LEAST, _UNSIGNED_LEAST = np.float32(3e-7), np.float32(2e-7)
# A little below each power of ten, so that rounding never scales past 1.
_BELOW_4, _BELOW_2, _BELOW_1, _BELOW_ONE = (np.float32(10.0**-k * (1 - 1e-6)) for k in (4, 2, 1, 0))
_TIMES_4, _TIMES_2, _TIMES_1 = (np.float32(10.0**k) for k in (4, 2, 1))
_PARTS_4, _PARTS_2, _PARTS_1 = (np.float32(0.5**k) for k in (4, 2, 1))
_TENTH, _WIDTH, _FIFTH, _BEFORE = np.float32(0.1), np.float32(1 / 0.9), np.float32(0.2), np.float32(-1)


@inlined
def place(x, parts):  # type: ignore[no-untyped-def]
    """The number n + j of the value that is nearest to x in (0, 1]: the j-th of its decade's n, of which [0.1, 1) has ``parts``.

    x is scaled to [0.1, 1), where the decade's n values are the middles of n equal intervals. Only between the last value of
    a decade and the first of the next one the threshold is no interval's end, but a fifth of an interval above it. x is
    rounded at most six times on the way, and together by less than 4 ulp, so next to a threshold the value on its other
    side may be found.
    """
    far = x < _BELOW_4
    x, parts = (x * _TIMES_4, parts * _PARTS_4) if far else (x, parts)
    far = x < _BELOW_2
    x, parts = (x * _TIMES_2, parts * _PARTS_2) if far else (x, parts)
    far = x < _BELOW_1
    x, parts = (x * _TIMES_1, parts * _PARTS_1) if far else (x, parts)
    interval = (x - _TENTH) * (parts * _WIDTH)
    return parts + (_BEFORE if interval < _FIFTH else np.floor(interval))


@inlined
def absmax(x):  # type: ignore[no-untyped-def]
    """The largest magnitude, NaN where one is; Inf counts as the largest finite number. (By bits, which ascend with it.)"""
    wide_vectors()
    top = np.uint32(0)
    for i in range(x.size):
        top = max(top, as_bits(x[i]) & _MAGNITUDE)
    return as_float(_LARGEST if top == _INFINITE else top)


@inlined
def read_signed(out, codes, scale):  # type: ignore[no-untyped-def]
    """A block of first moments or momentum."""
    wide_vectors()
    for i in range(codes.size):
        out[i] = _SIGNED_VALUES[codes[i]] * scale


@inlined
def read_unsigned(out, codes, scale):  # type: ignore[no-untyped-def]
    """A block of second moments."""
    wide_vectors()
    for i in range(codes.size):
        out[i] = _UNSIGNED_VALUES[codes[i]] * scale


@inlined
def write_signed(codes, scale, x):  # type: ignore[no-untyped-def]
    """Round a block to the nearest codes, and store its scale."""
    wide_vectors()
    scale[0] = absmax(x)
    divisor = scale[0] if scale[0] != 0 else np.float32(1)
    for i in range(x.size):
        y = x[i] / divisor
        magnitude = as_float(as_bits(y) & _MAGNITUDE)
        found = place(min(max(magnitude, _SIGNED_LEAST), _BELOW_ONE), _SIGNED_PARTS)
        found = found if magnitude > _SIGNED_FIRST else _NONE
        code = as_float(as_bits(found) | as_bits(y) & _SIGN) + _SIGNED_ZERO
        codes[i] = np.int32(code + _ONE if y > _SIGNED_LAST else code)


@inlined
def write_unsigned(codes, scale, x):  # type: ignore[no-untyped-def]
    """As `write_signed`, of numbers that are never negative."""
    wide_vectors()
    scale[0] = absmax(x)
    divisor = scale[0] if scale[0] != 0 else np.float32(1)
    for i in range(x.size):
        y = x[i] / divisor
        found = place(min(max(y, _UNSIGNED_LEAST), _BELOW_ONE), _UNSIGNED_PARTS) - _ONE
        found = found if y > _UNSIGNED_FIRST else _NONE
        codes[i] = np.int32(found + _ONE if y > _UNSIGNED_LAST else found)
