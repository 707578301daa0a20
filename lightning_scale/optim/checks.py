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
    pair = _pair(value)
    if pair is None:
        raise ValueError(f"betas is {value!r}: give two numbers, such as (0.9, 0.999).")
    for i, beta in enumerate(pair):
        fraction(f"betas[{i}]", beta)
    return pair


def bounds(name: str, value: Sequence[float] | None) -> tuple[float, float] | None:
    """A clip's bounds as a tuple, or None.

    Raises:
        ValueError: unless 0 <= low <= high.
    """
    if value is None:
        return None
    pair = _pair(value)
    if pair is None or not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"{name} is {value!r}: give (low, high) with 0 <= low <= high, or None for no clip.")
    return pair


def bool_or_none(name: str, value: bool | None) -> None:
    """Raises ValueError unless ``value`` is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give True or False, or None to leave it to exclude_1d.")


def _pair(value: Sequence[float]) -> tuple[float, float] | None:
    """Two numbers as floats; None for anything else."""
    try:
        first, second = value
        return float(first), float(second)
    except (TypeError, ValueError):
        return None
