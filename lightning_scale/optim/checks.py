"""Checks of the optimizers' arguments, each with the sentence that its user reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def non_negative(name: str, value: float | Tensor) -> None:
    """Raises ValueError unless ``value`` is a finite number of at least 0 (0-d tensors too)."""
    if isinstance(value, Tensor) and value.dim() > 0:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: give a number or a 0-d tensor.")
    if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
        raise TypeError(f"{name} is {value!r}: give a number of at least 0.")
    if not (value >= 0 and (isinstance(value, Tensor) or math.isfinite(value))):
        raise ValueError(f"{name} is {value}: give a finite number of at least 0.")


def positive(name: str, value: float | None) -> None:
    """Raises ValueError unless ``value`` is None or above 0."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} is {value}: give a number above 0, or None to leave it off.")


def fraction(name: str, value: float) -> None:
    """Raises ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}: give a number of at least 0 and below 1.")


def betas(value: Sequence[float]) -> tuple[float, float]:
    """The two decay rates as a tuple of floats.

    Raises:
        ValueError: unless there are two, each in [0, 1).
    """
    if len(value) != 2:
        raise ValueError(f"betas is {value!r}: give two numbers, such as (0.9, 0.999).")
    for i, beta in enumerate(value):
        fraction(f"betas[{i}]", beta)
    return float(value[0]), float(value[1])


def bounds(name: str, value: Sequence[float] | None) -> tuple[float, float] | None:
    """A clip's bounds as a tuple, or None.

    Raises:
        ValueError: unless 0 <= low <= high.
    """
    if value is None:
        return None
    if len(value) != 2 or not 0 <= value[0] <= value[1]:
        raise ValueError(f"{name} is {value!r}: give (low, high) with 0 <= low <= high, or None for no clip.")
    return float(value[0]), float(value[1])
