"""The two terms of the noise scale, where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_scale.monitoring import Estimate, SmoothedNoise, UnitSums, estimate, unbiased

MEAN = np.array([0.4, -0.2, 0.1, 0.0, 0.3])
SPREAD = np.array([1.0, 2.0, 0.5, 0.1, 1.5])
SQUARE, TRACE = float(MEAN @ MEAN), float(SPREAD @ SPREAD)


def one_step(draw: np.random.Generator, sizes: list[int], weights: list[float] | None = None) -> Estimate | None:
    """Units of these sizes, each the mean of samples that are drawn one by one, and their weighted mean."""
    units = [(MEAN + SPREAD * draw.standard_normal((size, 5))).mean(axis=0) for size in sizes]
    c = [float(size) for size in sizes] if weights is None else weights
    mean = sum(w * g for w, g in zip(c, units, strict=True)) / sum(c)
    sums = UnitSums()
    for w, g, size in zip(c, units, sizes, strict=True):
        sums += UnitSums.of_unit(float((w * g) @ (w * g)), w, size, size)
    return estimate(sums, float(mean @ mean))


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([4, 4], None), ([6, 6, 5], None), ([1, 9, 3, 3], None), ([4, 4, 1], [0.25, 0.25, 0.25]), ([3, 8], [5.0, 1.0])],
)
def test_both_terms_are_unbiased(sizes: list[int], weights: list[float] | None) -> None:
    draw = np.random.default_rng(0)
    seen = [one_step(draw, sizes, weights) for _ in range(20_000)]
    for values, truth in (
        ([s.gradient_square for s in seen if s], SQUARE),
        ([s.trace for s in seen if s], TRACE),
    ):
        error = float(np.std(values)) / math.sqrt(len(values))
        assert len(values) == 20_000
        assert abs(float(np.mean(values)) - truth) < 4 * error
        assert error < 0.05 * truth  # so that four of it are a small part of the truth


def test_taking_uneven_units_for_even_ones_is_noticed() -> None:
    """The tolerance tells B_small by the units' mean size from the units' own weights."""
    draw = np.random.default_rng(0)
    wrong = []
    for _ in range(20_000):
        units = [(MEAN + SPREAD * draw.standard_normal((size, 5))).mean(axis=0) for size in (1, 9)]
        mean = 0.1 * units[0] + 0.9 * units[1]
        small = float(np.mean([g @ g for g in units]))
        wrong.append(unbiased(small, float(mean @ mean), 5, 10).trace)
    assert abs(np.mean(wrong) - TRACE) > 20 * np.std(wrong) / math.sqrt(len(wrong))


def test_of_a_mean_over_all_samples_it_is_the_analysis_of_variance() -> None:
    sizes, draw = [2, 5, 3], np.random.default_rng(1)
    units = [draw.standard_normal((size, 7)).mean(axis=0) for size in sizes]
    mean = sum(b * g for b, g in zip(sizes, units, strict=True)) / 10
    expected = sum(b * float((g - mean) @ (g - mean)) for b, g in zip(sizes, units, strict=True)) / 2
    sums = UnitSums()
    for b, g in zip(sizes, units, strict=True):
        sums += UnitSums.of_unit(b * b * float(g @ g), b, b, b)
    assert sums.big_batch == pytest.approx(10)
    assert sums.small_batch == pytest.approx(10 / 3)
    seen = estimate(sums, float(mean @ mean))
    assert seen is not None
    assert seen.trace == pytest.approx(expected, rel=1e-12)
    assert seen.gradient_square == pytest.approx(float(mean @ mean) - expected / 10, rel=1e-12)


def test_items_are_turned_into_samples() -> None:
    """Of 4 items a sample a sample's variance is a quarter of an item's, and |G|² is the same."""
    items = UnitSums.of_unit(9.0, 1.0, 8, 2) + UnitSums.of_unit(5.0, 1.0, 8, 2)
    samples = UnitSums.of_unit(9.0, 1.0, 2, 2) + UnitSums.of_unit(5.0, 1.0, 2, 2)
    assert estimate(items, 6.0) == estimate(samples, 6.0) == Estimate(5.0, 4.0)


def test_nothing_to_compare() -> None:
    one = UnitSums.of_unit(3.0, 1.0, 4, 4)
    assert estimate(one, 3.0) is None
    assert estimate(one + UnitSums.of_unit(0.0, 0.0, 0, 4), 3.0) is None  # a micro-batch without items
    assert estimate(one + UnitSums.of_unit(math.inf, 1.0, 4, 4), 3.0) is None
    assert estimate(one + one, math.nan) is None


def test_the_averages_forget_where_they_began() -> None:
    noise = SmoothedNoise(0.9)
    assert noise.critical_batch_size is None
    noise.add(Estimate(2.0, 12.0))
    assert (noise.gradient_square, noise.trace, noise.critical_batch_size) == pytest.approx((2.0, 12.0, 6.0))
    noise.add(Estimate(-1.0, 10.0))
    # Weights 0.09 and 0.1 of 0.19.
    assert noise.gradient_square == pytest.approx((0.09 * 2 - 0.1) / 0.19)
    assert noise.critical_batch_size == pytest.approx((0.09 * 12 + 0.1 * 10) / (0.09 * 2 - 0.1))
    noise.add(Estimate(-9.0, 10.0))
    assert noise.gradient_square < 0
    assert noise.critical_batch_size is None


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_a_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"smoothing is {smoothing}: give a number of at least 0 and below 1"):
        SmoothedNoise(smoothing)
