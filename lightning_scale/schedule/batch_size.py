"""What a batch-size schedule is, and the constant one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from lightning_scale.schedule.checks import finite, whole


class BatchSizeSchedule(ABC):
    """The batch size as a pure function of progress: a resumed run needs no replay.

    Batch sizes are samples per optimizer step, over all ranks and micro-batches. Progress is the samples consumed so
    far, over all ranks as well.
    """

    @abstractmethod
    def batch_size(self, samples: int) -> int:
        """The batch size of the next optimizer step after ``samples`` samples.

        Raises:
            ValueError: for a number of samples below 0.
        """

    @abstractmethod
    def changes(self) -> list[tuple[int, int]]:
        """Each size with the first number of samples at which it applies, in order; the first applies at 0."""

    def lr_factor(self, samples: int) -> float:
        """What the rate of the next step is multiplied with, where the schedule leaves a part of a decay to the rate."""
        return 1.0

    def steps_of_one_size(self, samples: int, batch_size: int) -> int | None:
        """Optimizer steps from ``samples`` on before the size changes, at ``batch_size`` samples each; None for all.

        Args:
            samples: Samples consumed.
            batch_size: The size that applies there, as it is carried out.
        """
        starts = self._starts_of_sizes
        place = bisect_right(starts, samples)
        return -((samples - starts[place]) // batch_size) if place < len(starts) else None

    @cached_property
    def _starts_of_sizes(self) -> list[int]:
        return [samples for samples, _ in self.changes()]

    @property
    def max_batch_size(self) -> int:
        """The largest size that ever applies."""
        return max(size for _, size in self.changes())

    def samples_after(self, steps: int) -> int:
        """Samples that the first ``steps`` optimizer steps consume.

        Raises:
            ValueError: for a number of steps below 0.
        """
        left, consumed, changes = whole("steps", steps, 0), 0, self.changes()
        for (_, size), (end, _) in pairwise(changes):
            # a step may begin before a change and end after it, or after several: those sizes then get no step
            taken = min(left, max(0, -((consumed - end) // size)))
            left, consumed = left - taken, consumed + taken * size
        return consumed + left * changes[-1][1]

    def steps_until(self, samples: int | Fraction) -> Fraction:
        """Optimizer steps that consume ``samples`` samples; of the last step the part that is needed.

        Raises:
            ValueError: for a number of samples below 0.
        """
        finite("samples", samples)
        steps, consumed, changes = 0, 0, self.changes()
        for (_, size), (end, _) in pairwise(changes):
            taken = max(0, -((consumed - end) // size))
            if consumed + taken * size >= samples:
                return steps + Fraction(samples - consumed) / size
            steps, consumed = steps + taken, consumed + taken * size
        return steps + Fraction(samples - consumed) / changes[-1][1]

    def __repr__(self) -> str:
        changes = self.changes()
        inner = [f"{samples}:{size}" for samples, size in changes[:3]]
        if len(changes) > 4:
            inner.append("...")
        inner += [f"{samples}:{size}" for samples, size in changes[3:][-1:]]
        return f"{type(self).__name__}({' '.join(inner)})"


class ConstantBatchSize(BatchSizeSchedule):
    """One size throughout.

    Args:
        size: Samples per optimizer step.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(self, size: int) -> None:
        self.size = whole("batch_size", size)

    def batch_size(self, samples: int) -> int:
        whole("samples", samples, 0)
        return self.size

    def changes(self) -> list[tuple[int, int]]:
        return [(0, self.size)]
