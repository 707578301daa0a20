"""The noise scale over many steps: each term is smoothed by itself before their ratio is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_scale.noise.estimate import Estimate


@dataclass
class SmoothedNoise:
    """Exponential moving averages of |G|² and tr Σ, corrected for their start from zero.

    The ratio of one step's terms is useless: |G|² is a small difference of large numbers, and often negative.

    Args:
        smoothing: What an average keeps of itself at each look, at least 0 and below 1.

    Raises:
        ValueError: for a ``smoothing`` out of range.
    """

    smoothing: float
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of |G|², of tr Σ, of the weights

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}: give a number of at least 0 and below 1, such as 0.95.")

    def add(self, seen: Estimate) -> None:
        """Take one step's terms in."""
        keep = self.smoothing
        new = (seen.gradient_square, seen.trace, 1.0)
        self._sums = [keep * old + (1 - keep) * value for old, value in zip(self._sums, new, strict=True)]

    @property
    def gradient_square(self) -> float:
        """Smoothed |G|²; 0 before the first look."""
        return self._sums[0] / (self._sums[2] or 1.0)

    @property
    def trace(self) -> float:
        """Smoothed tr Σ; 0 before the first look."""
        return self._sums[1] / (self._sums[2] or 1.0)

    @property
    def critical_batch_size(self) -> float | None:
        """B_simple = tr Σ / |G|² in samples; ``None`` while noise leaves one of the terms negative."""
        if self.gradient_square <= 0 or self.trace < 0:
            return None
        return self.trace / self.gradient_square

    def state_dict(self) -> dict[str, list[float]]:
        """What a resumed run goes on with, to the bit."""
        return {"sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from there."""
        self._sums = list(state["sums"])
