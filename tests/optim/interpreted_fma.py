"""``tl.fma`` rounded once, as on a GPU, in Triton's interpreter: that of Triton 3.2 multiplies, rounds, adds, and rounds again.

Only of float32 numbers: sums in float64 are rounded to float32 afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


def fma(x: Numbers, y: Numbers, z: Numbers) -> Numbers:
    """xy + z of float32 numbers, rounded once.

    float64 holds the product. The sum is rounded to the odd neighbour where it is between two float64 numbers (its error is
    Knuth's), and from an odd number of 53 bits the nearest of 24 is the exact sum's (Boldo and Melquiond 2008, "Emulation of
    a FMA and correctly rounded sums", theorem 1).
    """
    with np.errstate(all="ignore"):  # infinite ones have no error
        product, rest = np.multiply(x, y, dtype=np.float64), np.asarray(z, np.float64)
        total = product + rest
        back = total - product
        error = (product - (total - back)) + (rest - back)
        between = np.isfinite(total) & (error != 0) & ((total.view(np.int64) & 1) == 0)
        odd = np.where(between, np.nextafter(total, np.copysign(np.inf, error)), total)
        return odd.astype(np.float32)


def rounds_twice(builder: Any) -> bool:
    """Whether the interpreter's own does."""
    from triton.runtime.interpreter import TensorHandle

    handle = lambda number: TensorHandle(np.array([number], np.float32), _float32())  # noqa: E731
    return bool(builder.create_fma(handle(1 + 2.0**-12), handle(1 + 2.0**-12), handle(-1 - 2.0**-11)).data[0] == 0)


def create_fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """What an interpreter's builder does for ``tl.fma``."""
    from triton.runtime.interpreter import TensorHandle

    single = x.data.dtype == y.data.dtype == z.data.dtype == np.float32
    data = fma(*np.broadcast_arrays(x.data, y.data, z.data)) if single else x.data * y.data + z.data
    return TensorHandle(data, z.dtype.scalar)


def _float32() -> Any:
    import triton.language as tl

    return tl.float32
