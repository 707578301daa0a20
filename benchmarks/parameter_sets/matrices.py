"""For CPUs: about 50 million elements, well beyond a CPU's caches, in matrices of 1 to 4 million and their vectors."""

from __future__ import annotations


def matrices(hidden: int = 1024, inner: int = 4096, layers: int = 4) -> list[tuple[int, ...]]:
    """Four layers of a transformer: each four square matrices, two wide ones, and their biases and norms."""
    square: list[tuple[int, ...]] = [(hidden, hidden), (hidden,)]
    norm: list[tuple[int, ...]] = [(hidden,), (hidden,)]
    layer = 4 * square + norm + [(inner, hidden), (inner,), (hidden, inner), (hidden,)] + norm
    return layers * layer
