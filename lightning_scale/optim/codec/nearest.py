"""The nearest code of numbers in [-1, 1], found in two ways that agree for every float32.

Both say: how many thresholds are below x (see `Code.thresholds`). Numbers beyond the code's ends have the end's code,
also infinite ones; -0.0 is 0; what a NaN becomes is not defined.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from lightning_scale.optim.codec.tables import DECADES, Code


def nearest_by_search(x: Tensor, code: Code) -> Tensor:
    """The code of each element, by search in the table: the definition.

    Args:
        x: float32, any shape.
        code: The code.

    Returns:
        uint8, of the same shape.
    """
    return torch.bucketize(x, code.thresholds(x.device), out_int32=True).to(torch.uint8)


def nearest_by_arithmetic(x: Tensor, code: Code) -> Tensor:
    """As `nearest_by_search`, without a search: a guess from seven lines, then one step up or down.

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
    """(slope, offset) of each decade's places."""
    lines = []
    for i in range(DECADES):
        n = code.parts(i)
        before = n if code.signed else n - 1  # places below the decade, that of 0 among them
        lines.append((10.0 ** (DECADES - 1 - i) * n / 0.9, before - n / 9))
    return tuple(lines)


@cache
def _beside(code: Code, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each code the threshold below and above it; at the ends NaN, on whose other side no number lies."""
    thresholds = code.thresholds(device)
    end = thresholds.new_full((1,), torch.nan)
    return torch.cat([end, thresholds]), torch.cat([thresholds, end])
