"""A larger batch where the learning rate would have been decayed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from lightning_scale.schedule.batch_size import BatchSizeSchedule
from lightning_scale.schedule.checks import finite, whole
from lightning_scale.schedule.conversion import to_samples
from lightning_scale.schedule.quantity import Quantity


class InsteadOfDecay(BatchSizeSchedule):
    """Grows the batch by 1 / factor where a step decay would multiply the rate by ``factor``.

    For SGD the noise of training follows rate / batch size, so both do the same, and the larger batch takes fewer steps
    (Smith et al. 2018, "Don't decay the learning rate, increase the batch size", arXiv 1711.00489).

    Args:
        start: The batch size before the first milestone.
        milestones: Where the rate would have been decayed, rising: "30M samples", "10B tokens" or "30 epochs".
        factor: What the rate would have been multiplied with at each, between 0 and 1. Every size before the cap must
            come out whole.
        max_batch_size: The batch stops growing here, and :meth:`lr_factor` is the rest of the decay; ``None`` for no
            cap.
        samples_per_epoch: Needed for milestones in epochs.
        tokens_per_sample: Needed for milestones in tokens.

    Raises:
        ValueError: for anything else.
    """

    def __init__(
        self,
        start: int,
        milestones: Sequence[str | Quantity],
        factor: float = 0.1,
        max_batch_size: int | None = None,
        *,
        samples_per_epoch: int | None = None,
        tokens_per_sample: int | None = None,
    ) -> None:
        self.start = whole("start", start)
        if isinstance(milestones, (str, Quantity)) or not milestones:
            raise ValueError(f'milestones is {milestones!r}: write a list such as ["30 epochs", "60 epochs"].')
        self._starts = [0]
        for i, text in enumerate(milestones):
            name = f"milestones[{i}]"
            milestone = Quantity.parse(text, ("samples", "tokens", "epochs"), name)
            samples = ceil(
                to_samples(
                    milestone, samples_per_epoch=samples_per_epoch, tokens_per_sample=tokens_per_sample, name=name
                )
            )
            if samples <= self._starts[-1]:
                before = "the start of training" if i == 0 else "the one before it"
                raise ValueError(f'{name} is "{milestone}", not after {before}: write milestones in rising order.')
            self._starts.append(samples)
        self.factor = _exact(factor)
        self._sizes = [self.start]
        self._cap = None if max_batch_size is None else whole("max_batch_size", max_batch_size)
        if self._cap is not None and self._cap < self.start:
            raise ValueError(f"max_batch_size is {self._cap}, below start {self.start}: write at least {self.start}.")
        for i in range(1, len(self._starts)):
            size = self.start / self.factor**i
            if self._cap is not None and size > self._cap:
                size = Fraction(self._cap)
            if size.denominator != 1:
                grid = self.factor.numerator ** len(milestones)
                raise ValueError(
                    f"factor {factor} makes the batch {float(size):g} at milestones[{i - 1}], not a whole number: write"
                    f" a factor such as 0.1, 0.2 or 0.5, or a start that is a multiple of {grid}."
                )
            self._sizes.append(size.numerator)

    def batch_size(self, samples: int) -> int:
        return self._sizes[self._milestones_passed(samples)]

    def lr_factor(self, samples: int) -> float:
        """What the rate of the next step is multiplied with: the part of the decay that the batch does not absorb.

        1 until ``max_batch_size`` stops the growth. With the batch it makes rate / batch size that of the step decay.

        Raises:
            ValueError: for a number of samples below 0.
        """
        passed = self._milestones_passed(samples)
        return float(self.factor**passed * self._sizes[passed] / self.start)

    def changes(self) -> list[tuple[int, int]]:
        changes = [(0, self.start)]
        for samples, size in zip(self._starts, self._sizes, strict=True):
            if size != changes[-1][1]:
                changes.append((samples, size))
        return changes

    def _milestones_passed(self, samples: int) -> int:
        return bisect_right(self._starts, whole("samples", samples, 0)) - 1


def _exact(factor: float) -> Fraction:
    """The simple fraction that a float stands for: 1/10 for 0.1, where the float itself is a little more."""
    finite("factor", factor, above=True)
    if factor >= 1:
        raise ValueError(f"factor is {factor}: give a number between 0 and 1, such as 0.1.")
    simple = Fraction(factor).limit_denominator(1000)
    return simple if float(simple) == factor else Fraction(factor)
