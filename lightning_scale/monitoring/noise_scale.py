"""The gradient noise scale: its two terms from one optimizer step, and their averages over many. Plain arithmetic.

McCandlish et al. 2018, arXiv 1812.06162, appendix A.1. A step's gradient is a weighted mean of its *units'* gradients: the
micro-batches of all ranks. A mean over b samples has E|g|² = |G|² + tr Σ / b, where G is the true gradient and Σ the
covariance of one sample's; two sizes of b give two equations.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field


@dataclass(frozen=True)
class Estimate:
    """The two terms that one step gives; each is unbiased, their ratio is not."""

    gradient_square: float
    """|G|², the squared norm of the true gradient; noise can make it negative."""
    trace: float
    """tr Σ, the trace of the covariance of one sample's gradient."""


@dataclass(frozen=True)
class UnitSums:
    """Sums over the units of a step; those of several ranks add up.

    A unit's gradient g is a mean over m items (samples, or what the loss is a mean over); its weight in the step's is c.
    """

    units: float = 0.0
    samples: float = 0.0
    items: float = 0.0
    """Σ m"""
    weight: float = 0.0
    """Σ c"""
    square: float = 0.0
    """Σ c·|g|²"""
    inverse: float = 0.0
    """Σ c/m"""
    inverse_square: float = 0.0
    """Σ c²/m"""

    @classmethod
    def of_unit(cls, weighted_square: float, weight: float, items: float, samples: float) -> UnitSums:
        """Return the sums of one unit; a unit without weight or items adds its samples alone.

        Args:
            weighted_square: |c·g|², the squared norm of the unit's gradient as it is added to the step's.
            weight: c, its weight in the step.
            items: m, the number of items that its loss is the mean of.
            samples: The number of samples that the items belong to.
        """
        if weight == 0 or items == 0:
            return cls(samples=samples)
        return cls(1.0, samples, items, weight, weighted_square / weight, weight / items, weight * weight / items)

    def __add__(self, other: UnitSums) -> UnitSums:
        return UnitSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def small_batch(self) -> float:
        """B_small in samples: units of this size would have the noise that the weighted mean of |g|² has."""
        return self.weight / self.inverse * self.samples / self.items

    @property
    def big_batch(self) -> float:
        """B_big in samples: the step's own size where it is the mean over its items, less where units weigh otherwise."""
        return self.weight * self.weight / self.inverse_square * self.samples / self.items


def unbiased(small_square: float, big_square: float, small_batch: float, big_batch: float) -> Estimate:
    """Return |G|² and tr Σ from the squared norms of gradients at two batch sizes.

    Args:
        small_square: The mean of |g|² over gradients of ``small_batch`` samples each.
        big_square: |g|² of the gradient of ``big_batch`` samples.
        small_batch: The smaller batch, in samples.
        big_batch: The larger batch, in samples.
    """
    trace = (small_square - big_square) / (1 / small_batch - 1 / big_batch)
    gradient_square = (big_batch * big_square - small_batch * small_square) / (big_batch - small_batch)
    return Estimate(gradient_square, trace)


def estimate(sums: UnitSums, mean_square: float) -> Estimate | None:
    """Return |G|² and tr Σ from a step's units and their mean.

    Uneven units have the weights that they have in the step, so that where it is the mean over all samples tr Σ is the
    analysis of variance's Σ b·|g − ḡ|² / (units − 1).

    Args:
        sums: The sums over all units of all ranks.
        mean_square: |Σ c·g / Σ c|², of the step's gradient.

    Returns:
        ``None`` where there is nothing to compare (a single unit), and for gradients that are not finite.
    """
    if sums.units < 2 or not math.isfinite(sums.square + mean_square):
        return None
    return unbiased(sums.square / sums.weight, mean_square, sums.small_batch, sums.big_batch)


@dataclass
class SmoothedNoise:
    """Exponential moving averages of |G|² and tr Σ, corrected for their start from zero; their ratio is the noise scale.

    Each term is smoothed by itself before the ratio is taken. The ratio of one step's terms is useless: |G|² is a small
    difference of large numbers, and often negative.

    Args:
        smoothing: The share of itself that an average keeps at each measured step, at least 0 and below 1.

    Raises:
        ValueError: for a ``smoothing`` out of range.
    """

    smoothing: float
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of |G|², of tr Σ, of the weights

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}: give a number of at least 0 and below 1, such as 0.95.")

    def add(self, seen: Estimate) -> None:
        """Take one step's terms into the averages."""
        keep = self.smoothing
        new = (seen.gradient_square, seen.trace, 1.0)
        self._sums = [keep * old + (1 - keep) * value for old, value in zip(self._sums, new, strict=True)]

    @property
    def gradient_square(self) -> float:
        """Smoothed |G|²; 0 before the first measured step."""
        return self._sums[0] / (self._sums[2] or 1.0)

    @property
    def trace(self) -> float:
        """Smoothed tr Σ; 0 before the first measured step."""
        return self._sums[1] / (self._sums[2] or 1.0)

    @property
    def critical_batch_size(self) -> float | None:
        """B_simple = tr Σ / |G|² in samples; ``None`` while noise leaves one of the terms negative."""
        if self.gradient_square <= 0 or self.trace < 0:
            return None
        return self.trace / self.gradient_square

    def state_dict(self) -> dict[str, list[float]]:
        """Return what a resumed run needs to go on with the same bits."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from the averages that `state_dict` returned."""
        self._sums = list(state["sums"])
