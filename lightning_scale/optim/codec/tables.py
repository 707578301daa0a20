"""The 256 values of the dynamic code, and the thresholds between them.

Dettmers et al. 2021 (arXiv 2110.02861, section 1.3): the leading zero bits of a code are a decimal exponent, the bits
after the first one a linear fraction. So decade i = 0..6, which ends at 10^(i-6), is cut into n_i equal parts of
[0.1, 1], and a value is the middle of its part::

    value(i, j) = 10^(i-6) · (0.1 + 0.9 · (j + 1/2) / n_i),   j = 0..n_i - 1
    unsigned: n_i = 2^(i+1);  signed: n_i = 2^i, for each sign

with 0 and 1 beside them: 256 values, in ascending order, so that code c stands for ``values[c]``. There is no -1: the
signed code ends at -(1 - 0.45/64) = -0.99296875. They are rounded to float32 once, from the exact fraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

DECADES = 7


@dataclass(frozen=True)
class Code:
    """A map from 256 codes to float32 values in [-1, 1] (signed) or [0, 1].

    Args:
        signed: For first moments and momentum; unsigned for second moments, which are never negative.
    """

    signed: bool

    @property
    def zero(self) -> int:
        """The code of 0."""
        return 127 if self.signed else 0

    def parts(self, decade: int) -> int:
        """n_i: how many values of one sign lie in a decade."""
        return int(2 ** (decade if self.signed else decade + 1))

    def values(self, device: torch.device | str = "cpu") -> Tensor:
        """The 256 values, float32, ascending."""
        return _values(self, torch.device(device))

    def thresholds(self, device: torch.device | str = "cpu") -> Tensor:
        """255 float32 numbers, ascending: the code of x is how many of them are below x.

        Threshold i is the largest float32 that still belongs to code i: with M the exact middle of values i and i+1, the
        largest float32 <= M where M > 0, and the largest < M where M < 0. So the code is the nearest to x exactly, and
        an x on the middle goes to the value of smaller magnitude. One exception: in the unsigned code threshold 0 is 0, so
        that every positive x has at least the smallest positive value. Rounded to 0, a second moment whose first moment
        is not would make the next step m/ε: thousands of times the learning rate where a gradient is zero once.
        """
        return _thresholds(self, torch.device(device))


SIGNED = Code(signed=True)
UNSIGNED = Code(signed=False)


@cache
def _values(code: Code, device: torch.device) -> Tensor:
    positive = [
        Fraction(10) ** (i + 1 - DECADES) * (Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 * code.parts(i)))
        for i in range(DECADES)
        for j in range(code.parts(i))
    ]
    negative = [-value for value in reversed(positive)] if code.signed else []
    return torch.tensor([float(v) for v in (*negative, 0, *positive, 1)], dtype=torch.float32, device=device)


@cache
def _thresholds(code: Code, device: torch.device) -> Tensor:
    values = _values(code, torch.device("cpu")).double()
    middle = (values[:-1] + values[1:]) / 2  # exact: neighbours are 24-bit numbers of nearly the same size, or one is 0
    nearest = middle.float()
    too_high = (nearest.double() > middle) | ((nearest.double() == middle) & (middle < 0))
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    thresholds = torch.where(too_high, below, nearest)
    if not code.signed:
        thresholds[0] = 0
    return thresholds.to(device)
