"""Batch sizes that grow evenly with the samples consumed."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction

from lightning_scale.schedule.batch_size import BatchSizeSchedule
from lightning_scale.schedule.checks import whole
from lightning_scale.schedule.conversion import to_samples
from lightning_scale.schedule.quantity import Quantity


class _EvenRamp(BatchSizeSchedule):
    """``increments`` changes spread evenly over a number of samples, the last at its end. Integer arithmetic only."""

    def __init__(self, increments: int, over: str | Quantity, tokens_per_sample: int | None) -> None:
        quantity = Quantity.parse(over, ("samples", "tokens"), "over")
        if quantity.unit == "samples" and tokens_per_sample is not None:
            raise ValueError(
                f'tokens_per_sample is not used with over="{quantity}": leave it out, or write over in tokens.'
            )
        if quantity.value == 0:
            raise ValueError(f'over is "{quantity}": write an amount above 0, such as "1M samples".')
        self.increments = increments
        self.ramp_samples: Fraction = to_samples(quantity, tokens_per_sample=tokens_per_sample, name="over")

    @abstractmethod
    def _size(self, increments: int) -> int:
        """The size after so many increments."""

    def batch_size(self, samples: int) -> int:
        done = whole("samples", samples, 0) * self.increments * self.ramp_samples.denominator
        return self._size(min(self.increments, done // self.ramp_samples.numerator))

    def changes(self) -> list[tuple[int, int]]:
        per_increment = self.increments * self.ramp_samples.denominator
        # a dict: where increments are closer than one sample, the last of them holds
        starts = {
            -(-i * self.ramp_samples.numerator // per_increment) if i else 0: self._size(i)
            for i in range(self.increments + 1)
        }
        return list(starts.items())

    @property
    def max_batch_size(self) -> int:
        return self._size(self.increments)


class LinearRamp(_EvenRamp):
    """Grows by ``increment`` at a time, at even distances in samples: the ramp of Megatron-LM and BLOOM.

    The size is start + increment * floor(samples * n / ramp samples), capped at ``end``, where
    n = (end - start) / increment. BLOOM's plan is ``LinearRamp(16, 2048, "20B tokens", 16, tokens_per_sample=2048)``.

    Args:
        start: The first size.
        end: The last size, reached when ``over`` is consumed.
        over: Length of the ramp, such as "20B tokens" or "9765625 samples".
        increment: The step between sizes; end - start is a multiple of it.
        tokens_per_sample: The sequence length, needed for a length in tokens.

    Raises:
        ValueError: for sizes below 1, ``end`` below ``start`` or not on the grid, a ramp without length, or
            ``tokens_per_sample`` missing or not used.
    """

    def __init__(
        self, start: int, end: int, over: str | Quantity, increment: int = 1, tokens_per_sample: int | None = None
    ) -> None:
        self.start, self.end, self.increment = whole("start", start), whole("end", end), whole("increment", increment)
        _check_growth(self.start, self.end)
        increments, rest = divmod(self.end - self.start, self.increment)
        if rest:
            raise ValueError(
                f"end is {end}, which {start} does not reach in increments of {increment}: write end={end - rest} or"
                f" end={end - rest + self.increment}, or another increment."
            )
        super().__init__(increments, over, tokens_per_sample)

    def _size(self, increments: int) -> int:
        return self.start + self.increment * increments


class GeometricRamp(_EvenRamp):
    """Multiplies the size by ``factor`` at a time, at even distances in samples.

    Args:
        start: The first size.
        end: The last size, reached when ``over`` is consumed: start times a power of ``factor``.
        over: Length of the ramp, such as "20B tokens" or "1M samples".
        factor: A whole number of at least 2.
        tokens_per_sample: The sequence length, needed for a length in tokens.

    Raises:
        ValueError: for sizes below 1, ``end`` below ``start`` or not on the grid, a ramp without length, or
            ``tokens_per_sample`` missing or not used.
    """

    def __init__(
        self, start: int, end: int, over: str | Quantity, factor: int = 2, tokens_per_sample: int | None = None
    ) -> None:
        self.start, self.end, self.factor = whole("start", start), whole("end", end), whole("factor", factor, 2)
        _check_growth(self.start, self.end)
        increments, size = 0, self.start
        while size < self.end:
            increments, size = increments + 1, size * self.factor
        if size != self.end:
            raise ValueError(
                f"end is {end}, which {start} does not reach in multiplications by {factor}: write"
                f" end={size // self.factor} or end={size}, or another factor."
            )
        super().__init__(increments, over, tokens_per_sample)

    def _size(self, increments: int) -> int:
        size: int = self.start * self.factor**increments
        return size


def _check_growth(start: int, end: int) -> None:
    if end < start:
        raise ValueError(f"end is {end}, below start {start}: write the smaller size as start.")
