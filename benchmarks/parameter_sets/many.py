"""For CPUs: 5,000 tensors with few elements, whose step is what is done for each tensor."""

from __future__ import annotations


def many(pairs: int = 2500, width: int = 16) -> list[tuple[int, ...]]:
    """Small matrices and their vectors."""
    pair: list[tuple[int, ...]] = [(width, width), (width,)]
    return pairs * pair
