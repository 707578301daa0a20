"""The dynamic 8-bit code: its 256 values, the thresholds between them, and the nearest code of a number."""

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
        signed: Whether there are negative values: for first moments and momentum, but not for second moments.
    """

    signed: bool

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return 127 if self.signed else 0

    def parts(self, decade: int) -> int:
        """Return how many values of one sign lie in a decade (n_i)."""
        return int(2 ** (decade if self.signed else decade + 1))

    def values(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the 256 values, float32, ascending."""
        return _values(self, torch.device(device))

    def thresholds(self, device: torch.device | str = "cpu") -> Tensor:
        """Return 255 float32 numbers, ascending: the code of x is how many of them are below x.

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


def nearest_by_search(x: Tensor, code: Code) -> Tensor:
    """Return the code of each element, found by search in the table, which defines it.

    Args:
        x: Numbers of any shape, float32.
        code: The code, which has the table.

    Returns:
        The codes, uint8, in the same shape.
    """
    return torch.bucketize(x, code.thresholds(x.device), out_int32=True).to(torch.uint8)


def nearest_by_arithmetic(x: Tensor, code: Code) -> Tensor:
    """Return what `nearest_by_search` does, without a search: a guess from seven lines, then one step up or down.

    Within decade i the magnitudes' places are linear: |x| · 10^(6-i) · n_i/0.9 + b_i. The lines meet at the decades'
    ends and get flatter, so the least of the seven is the right one. Rounded down, it is off by one at most (by float32's
    rounding, and next to a decade's ends), and the exact thresholds beside it say where.
    """
    magnitude = x.abs().clamp_(max=1) if code.signed else x.clamp(0, 1)
    (slope, offset), *others = _lines(code)
    place = magnitude * slope + offset
    line = torch.empty_like(place)
    for slope, offset in others:
        torch.minimum(place, torch.mul(magnitude, slope, out=line).add_(offset), out=place)
    guess = place.to(torch.int32)  # never negative, so towards zero is down
    if code.signed:
        guess = torch.where(x < 0, code.zero - guess, code.zero + guess)
    guess.clamp_(0, 255)
    below, above = _beside(code, x.device)
    flat = guess.view(-1)
    up = x > above.index_select(0, flat).view(x.shape)
    down = x <= below.index_select(0, flat).view(x.shape)
    return guess.add_(up).sub_(down.int()).to(torch.uint8)


@cache
def _lines(code: Code) -> tuple[tuple[float, float], ...]:
    """Return the slope and the offset of the line that each decade's places lie on."""
    lines = []
    for i in range(DECADES):
        n = code.parts(i)
        before = n if code.signed else n - 1  # places below the decade, that of 0 among them
        lines.append((10.0 ** (DECADES - 1 - i) * n / 0.9, before - n / 9))
    return tuple(lines)


@cache
def _beside(code: Code, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the thresholds below and above each code; at the ends they are NaN, which no number lies beyond."""
    thresholds = code.thresholds(device)
    end = thresholds.new_full((1,), torch.nan)
    return torch.cat([end, thresholds]), torch.cat([thresholds, end])
