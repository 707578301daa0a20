"""For CPUs: about 5 million elements, a small model, whose step takes a few milliseconds."""

from __future__ import annotations


def small(layers: int = 44, into: int = 224, out: int = 448, classes: int = 1000) -> list[tuple[int, ...]]:
    """Matrices of 100,000 elements with their vectors, and a larger one at the end."""
    layer: list[tuple[int, ...]] = [(into, out), (out,)]
    return [*layers * layer, (400, classes), (out,)]
