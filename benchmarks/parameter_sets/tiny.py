"""Every kind of tensor, small: for checks, for tests, and for Triton's interpreter."""

from __future__ import annotations


def tiny() -> list[tuple[int, ...]]:
    """Matrices in 8 bits with and without a rest in the last block, a small one, a convolution, small and large vectors."""
    return [(192, 128), (91, 101), (33, 17), (16, 8, 3, 3), (128,), (5000,)]
