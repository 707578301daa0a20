"""Checks of arguments, each with the sentence that its user reads."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from fractions import Fraction
from typing import SupportsIndex


def whole(name: str, value: SupportsIndex, least: int = 1) -> int:
    """The value as an ``int``.

    Raises:
        ValueError: unless it is a whole number of at least ``least``.
    """
    # bool is an int to Python, and True samples are a mistake
    if not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:
            pass
        else:
            if number >= least:
                return number
    raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}.")


def finite(name: str, value: float | Fraction, *, least: float = 0, above: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number of at least ``least`` (``above``: greater than it)."""
    bound = f"above {least}" if above else f"of at least {least}"
    number = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}: give a finite number {bound}.")
    if not (value > least if above else value >= least):
        raise ValueError(f"{name} is {value!r}: give a number {bound}.")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}: write {', '.join(choices[:-1])} or {choices[-1]}.")
