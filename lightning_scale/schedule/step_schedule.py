"""Batch sizes from a table, as users write it: "0:256 1M:512 4M:1024"."""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal, get_args

from lightning_scale.schedule.batch_size import BatchSizeSchedule, ConstantBatchSize
from lightning_scale.schedule.checks import one_of, whole
from lightning_scale.schedule.quantity import parse_count


class StepSchedule(BatchSizeSchedule):
    """Each size applies from its point on, until the next point.

    Args:
        schedule: "point:size" pairs with spaces between them, the first at 0, points rising. Points may be written with
            K (10^3), M (10^6) or B (10^9); sizes are written out, as "4K" could mean 4000 or 4096.
        unit: What the points count: "samples" or "tokens".
        tokens_per_sample: The sequence length, needed for "tokens". A size then applies from the first sample on at
            which so many tokens were consumed.

    Raises:
        ValueError: for anything else, or ``tokens_per_sample`` missing or not used.
    """

    def __init__(
        self, schedule: str, unit: Literal["samples", "tokens"] = "samples", tokens_per_sample: int | None = None
    ) -> None:
        one_of("unit", unit, get_args(Literal["samples", "tokens"]))
        if (unit == "tokens") != (tokens_per_sample is not None):
            raise ValueError(
                'points in tokens need the sequence length: give tokens_per_sample beside unit="tokens".'
                if unit == "tokens"
                else 'tokens_per_sample is not used with unit="samples": leave it out, or write unit="tokens".'
            )
        length = 1 if tokens_per_sample is None else whole("tokens_per_sample", tokens_per_sample)
        table: dict[int, int] = {}
        last = -1
        for point, size in _pairs(schedule):
            if point <= last or (last < 0 < point):
                wanted = "start at 0" if last < 0 else f"come after {last}"
                raise ValueError(
                    f'the point {point} of schedule {schedule!r} must {wanted}: write rising points such as "0:256'
                    ' 1M:512".'
                )
            last = point
            table[-(-point // length)] = size  # two points within one sample: the later one holds
        self._changes: list[tuple[int, int]] = []
        for samples, size in table.items():
            if not self._changes or size != self._changes[-1][1]:
                self._changes.append((samples, size))
        self._starts = [samples for samples, _ in self._changes]

    def batch_size(self, samples: int) -> int:
        return self._changes[bisect_right(self._starts, whole("samples", samples, 0)) - 1][1]

    def changes(self) -> list[tuple[int, int]]:
        return list(self._changes)


def parse_schedule(schedule: int | str | BatchSizeSchedule) -> BatchSizeSchedule:
    """What a user gave as a batch size: a number, "0:256 1M:512" (by samples), or a schedule object as it is.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(schedule, BatchSizeSchedule):
        return schedule
    if isinstance(schedule, str):
        return StepSchedule(schedule) if ":" in schedule else ConstantBatchSize(_size(schedule, schedule))
    return ConstantBatchSize(schedule)


def _pairs(schedule: str) -> list[tuple[int, int]]:
    if not isinstance(schedule, str) or not schedule.split():
        raise ValueError(f'schedule is {schedule!r}: write "point:size" pairs such as "0:256 1M:512".')
    pairs = []
    for pair in schedule.split():
        point, colon, size = pair.partition(":")
        if not colon:
            raise ValueError(
                f'schedule {schedule!r} has {pair!r} without a colon: write "point:size" pairs such as "0:256 1M:512".'
            )
        pairs.append((parse_count(point, f"the point of {pair!r} in the schedule"), _size(size, schedule)))
    return pairs


def _size(text: str, schedule: str) -> int:
    digits = text.strip().replace("_", "")
    if not (digits.isascii() and digits.isdigit()) or int(digits) < 1:
        raise ValueError(
            f"the batch size {text!r} in {schedule!r} is not a whole number of at least 1: write it out, such as 4096"
            ' ("4K" could mean 4000 or 4096).'
        )
    return int(digits)
