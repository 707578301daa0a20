from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import GeometricRamp, LinearRamp

from .sentences import refuses

BLOOM_SAMPLES = 9_765_625  # 20 B tokens of 2,048


@pytest.fixture(scope="module")
def bloom() -> LinearRamp:
    return LinearRamp(16, 2048, "20B tokens", 16, tokens_per_sample=2048)


def megatron(samples: int, start: int, end: int, increment: int, ramp_samples: Fraction) -> int:
    """Megatron-LM's rule (``--rampup-batch-size start increment samples``), without its rounding."""
    if samples > ramp_samples:
        return end
    per_increment = ramp_samples / Fraction(end - start, increment)
    return start + increment * int(samples / per_increment)


# -- BLOOM -------------------------------------------------------------------------------------------------------------


def test_every_change_of_blooms_ramp(bloom: LinearRamp) -> None:
    changes = bloom.changes()
    assert len(changes) == 128
    assert changes[0] == (0, 16)
    for i in range(1, 128):
        samples, size = changes[i]
        assert size == 16 + 16 * i
        assert samples == ceil(Fraction(BLOOM_SAMPLES * i, 127))
        assert (bloom.batch_size(samples - 1), bloom.batch_size(samples)) == (size - 16, size)
    assert changes[-1] == (BLOOM_SAMPLES, 2048)


def test_blooms_numbers(bloom: LinearRamp) -> None:
    assert bloom.increments == 127
    assert bloom.ramp_samples == BLOOM_SAMPLES
    assert round(float(bloom.ramp_samples / bloom.increments), 1) == 76_894.7
    assert bloom.max_batch_size == 2048
    # constant for the 430 B tokens after it
    assert bloom.batch_size(BLOOM_SAMPLES + 430 * 10**9 // 2048) == 2048


@given(st.integers(0, 2 * BLOOM_SAMPLES))
def test_bloom_is_megatrons_rule_anywhere(bloom: LinearRamp, samples: int) -> None:
    assert bloom.batch_size(samples) == megatron(samples, 16, 2048, 16, Fraction(BLOOM_SAMPLES))


def test_the_same_ramp_in_samples(bloom: LinearRamp) -> None:
    assert LinearRamp(16, 2048, "9765625 samples", 16).changes() == bloom.changes()


# -- any linear ramp ---------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5000),
    st.integers(1, 500),
    st.integers(1, 5000),
    st.integers(1, 10**16),
    st.integers(1, 5000),
    st.integers(0, 10**17),
)
def test_linear_is_megatrons_rule(start: int, n: int, increment: int, tokens: int, length: int, samples: int) -> None:
    end = start + n * increment
    ramp = LinearRamp(start, end, f"{tokens} tokens", increment, length)
    want = megatron(samples, start, end, increment, Fraction(tokens, length))
    assert ramp.batch_size(samples) == want


@given(st.integers(10**18, 10**25), st.integers(1, 1000))
def test_sample_counts_beyond_a_floats_digits_are_exact(ramp_samples: int, i: int) -> None:
    ramp = LinearRamp(1, 1001, f"{ramp_samples} samples")
    change = -(-ramp_samples * i // 1000)
    assert ramp.batch_size(change) == 1 + i
    assert ramp.batch_size(change - 1) == i


def test_more_increments_than_samples() -> None:
    ramp = LinearRamp(1, 11, "3 samples")
    # 10 increments over 3 samples: 3, 6 and 10 of them after 1, 2 and 3
    assert ramp.changes() == [(0, 1), (1, 4), (2, 7), (3, 11)]
    assert [ramp.batch_size(samples) for samples in range(5)] == [1, 4, 7, 11, 11]


def test_a_ramp_between_equal_sizes_is_constant() -> None:
    assert LinearRamp(8, 8, "1M samples", 4).changes() == [(0, 8)]
    assert GeometricRamp(8, 8, "1M samples").changes() == [(0, 8)]
    assert GeometricRamp(8, 8, "1M samples").batch_size(10**9) == 8


# -- geometric ---------------------------------------------------------------------------------------------------------


def test_geometric() -> None:
    ramp = GeometricRamp(256, 4096, "1M samples")
    assert ramp.changes() == [(0, 256), (250_000, 512), (500_000, 1024), (750_000, 2048), (1_000_000, 4096)]
    assert ramp.max_batch_size == 4096
    assert GeometricRamp(10, 90, "1000 tokens", 3, 10).changes() == [(0, 10), (50, 30), (100, 90)]


@given(st.integers(1, 100), st.integers(2, 9), st.integers(1, 8), st.integers(1, 10**20), st.integers(0, 10**21))
def test_geometric_multiplies_evenly(start: int, factor: int, n: int, over: int, samples: int) -> None:
    ramp = GeometricRamp(start, start * factor**n, f"{over} samples", factor)
    want = start
    for i in range(1, n + 1):
        if Fraction(samples) >= Fraction(over * i, n):
            want *= factor
    assert ramp.batch_size(samples) == want


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ramp", [LinearRamp, GeometricRamp])
def test_both_refuse(ramp: type[LinearRamp] | type[GeometricRamp]) -> None:
    refuses("start is 0", call=lambda: ramp(0, 8, "1M samples"))
    refuses("end is 0", call=lambda: ramp(1, 0, "1M samples"))
    refuses("end is 4, below start 8", "smaller size as start", call=lambda: ramp(8, 4, "1M samples"))
    refuses('over is "0 samples"', '"1M samples"', call=lambda: ramp(4, 8, "0 samples"))
    refuses("over is '5 epochs'", '"1 samples" or "1 tokens"', call=lambda: ramp(4, 8, "5 epochs"))
    refuses("over is 5", '"5 samples"', call=lambda: ramp(4, 8, 5))  # type: ignore[arg-type]
    refuses("needs tokens_per_sample", call=lambda: ramp(4, 8, "5 tokens"))
    refuses("tokens_per_sample is 0", call=lambda: ramp(4, 8, "5 tokens", tokens_per_sample=0))
    refuses("is not used", "write over in tokens", call=lambda: ramp(4, 8, "5 samples", tokens_per_sample=9))


def test_linear_refuses_an_end_off_the_grid() -> None:
    says = ("end is 2050", "16 does not reach in increments of 16", "end=2048 or end=2064")
    refuses(*says, call=lambda: LinearRamp(16, 2050, "1M samples", 16))
    refuses("increment is 0", call=lambda: LinearRamp(16, 32, "1M samples", 0))


def test_geometric_refuses_an_end_off_the_grid() -> None:
    refuses("end is 1000", "end=512 or end=1024", call=lambda: GeometricRamp(256, 1000, "1M samples"))
    refuses("factor is 1", "at least 2", call=lambda: GeometricRamp(256, 512, "1M samples", 1))
    refuses("factor is 1.5", call=lambda: GeometricRamp(256, 384, "1M samples", 1.5))  # type: ignore[arg-type]
