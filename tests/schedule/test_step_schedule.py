from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import ConstantBatchSize, LinearRamp, StepSchedule, parse_schedule

from .sentences import refuses


def test_sizes_apply_from_their_points_on() -> None:
    schedule = StepSchedule("0:256 1M:512 4M:1024")
    shown = [0, 999_999, 1_000_000, 3_999_999, 4_000_000, 10**15]
    assert [schedule.batch_size(samples) for samples in shown] == [256, 256, 512, 512, 1024, 1024]
    assert schedule.changes() == [(0, 256), (1_000_000, 512), (4_000_000, 1024)]
    assert schedule.max_batch_size == 1024


def test_sizes_may_fall_and_repeat() -> None:
    schedule = StepSchedule("0:512 100:512 1_000:256 2K:1_024")
    assert schedule.changes() == [(0, 512), (1000, 256), (2000, 1024)]


def test_points_in_tokens() -> None:
    schedule = StepSchedule("0:16 1M:32", unit="tokens", tokens_per_sample=2048)
    # 488 samples are 999,424 tokens, 489 are 1,001,472
    assert schedule.changes() == [(0, 16), (489, 32)]


def test_of_two_points_within_one_sample_the_later_holds() -> None:
    schedule = StepSchedule("0:1 100:2 200:3 1000:4", unit="tokens", tokens_per_sample=1000)
    assert schedule.changes() == [(0, 1), (1, 4)]


@given(
    st.lists(st.tuples(st.integers(1, 10**14), st.integers(1, 99)), max_size=5, unique_by=lambda p: p[0]),
    st.integers(1, 10**4),
    st.integers(0, 10**12),
)
def test_tokens_are_samples_times_length(points: list[tuple[int, int]], length: int, samples: int) -> None:
    table = [(0, 7), *sorted(points)]
    text = " ".join(f"{point}:{size}" for point, size in table)
    want = next(size for point, size in reversed(table) if point <= samples * length)
    assert StepSchedule(text, unit="tokens", tokens_per_sample=length).batch_size(samples) == want


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ('"0:256 1M:512"',)),
        (" ", ('"0:256 1M:512"',)),
        (256, ('"0:256 1M:512"',)),
        ("256", ("'256' without a colon",)),
        ("0:256 1M", ("'1M' without a colon",)),
        ("1M:256", ("the point 1000000", "start at 0")),
        ("0:256 2M:512 1M:1024", ("the point 1000000", "come after 2000000")),
        ("0:256 0:512", ("the point 0", "come after 0")),
        ("0:256, 1M:512", ("'256,'", "whole number")),
        ("0:4K", ("'4K'", "4000 or 4096")),
        ("0:0", ("'0'", "at least 1")),
        ("0:-4", ("'-4'", "at least 1")),
        ("0:²", ("'²'", "at least 1")),
        ("0:256 -5:512", ("the point of '-5:512'", '"1M"')),
        ("0:256 1.5:512", ("the point of '1.5:512'", '"1M"')),
        ("0:256 x:512", ("the point of 'x:512'",)),
        ("0:1:2", ("'1:2'",)),
    ],
)
def test_refused(text: object, says: tuple[str, ...]) -> None:
    refuses(*says, call=lambda: StepSchedule(text))  # type: ignore[arg-type]


def test_units_are_checked() -> None:
    refuses("unit is 'steps'", "samples or tokens", call=lambda: StepSchedule("0:1", unit="steps"))  # type: ignore[arg-type]
    refuses("give tokens_per_sample", call=lambda: StepSchedule("0:1", unit="tokens"))
    refuses("is not used", 'unit="tokens"', call=lambda: StepSchedule("0:1", tokens_per_sample=2048))
    refuses("tokens_per_sample is 0", call=lambda: StepSchedule("0:1", unit="tokens", tokens_per_sample=0))


def test_parse_schedule() -> None:
    ramp = LinearRamp(16, 32, "1M samples")
    assert parse_schedule(ramp) is ramp
    for text in (4096, "4096", " 4_096 "):
        parsed = parse_schedule(text)
        assert isinstance(parsed, ConstantBatchSize)
        assert parsed.changes() == [(0, 4096)]
    assert parse_schedule("0:256 1M:512").changes() == [(0, 256), (1_000_000, 512)]


@pytest.mark.parametrize("given", [0, -1, 2.5, True, None, "", "4K", "256 samples", "0", "-5", [256]])
def test_parse_schedule_refuses(given: object) -> None:
    refuses("batch", "at least 1", call=lambda: parse_schedule(given))  # type: ignore[arg-type]
