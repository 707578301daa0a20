from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import decay_factor, rate_factor, warmup_factor

from .sentences import refuses

DECAYS = ["constant", "linear", "cosine", "polynomial"]
totals = st.integers(1, 10**6)
powers = st.floats(0.1, 4)


def by_definition(t: int, total: int, warmup: Fraction, decay: str, power: float, decay_from: str) -> float:
    """The rate in floats, as the recipe states it."""
    if t < warmup:
        return t / float(warmup)
    p = t / total if decay_from == "stage_start" else (t - float(warmup)) / (total - float(warmup))
    p = min(1.0, p)
    return {
        "constant": 1.0,
        "linear": 1 - p,
        "cosine": (1 + math.cos(math.pi * p)) / 2,
        "polynomial": (1 - p) ** power,
    }[decay]


def test_warmup() -> None:
    assert [warmup_factor(t, 4) for t in range(1, 7)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warmup_factor(t, Fraction(5, 2)) for t in range(1, 5)] == [0.4, 0.8, 1, 1]
    assert [warmup_factor(t, 2.5) for t in range(1, 5)] == [0.4, 0.8, 1, 1]
    assert [warmup_factor(t, 0) for t in (1, 2)] == [1, 1]
    assert warmup_factor(1, Fraction(1, 3)) == 1


@pytest.mark.parametrize("decay", DECAYS)
def test_decay_begins_at_1_and_ends_at_exactly_0(decay: str) -> None:
    assert decay_factor(decay, 0) == 1  # type: ignore[arg-type]
    assert decay_factor(decay, 1) == (1 if decay == "constant" else 0)  # type: ignore[arg-type]
    assert decay_factor(decay, 1.0, 1.0) == (1 if decay == "constant" else 0)  # type: ignore[arg-type]


def test_decay_values() -> None:
    assert decay_factor("linear", 0.25) == 0.75
    assert decay_factor("linear", 0.25, power=1.0) == 0.75
    assert decay_factor("cosine", Fraction(1, 3)) == pytest.approx(0.75, rel=1e-15)
    assert decay_factor("cosine", 0.5) == pytest.approx(0.5, rel=1e-15)
    assert decay_factor("polynomial", 0.75, 0.5) == 0.5
    assert decay_factor("polynomial", Fraction(1, 4), 2) == 0.5625
    assert decay_factor("polynomial", 0.25) == 0.75


@given(
    totals.flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))),
    st.fractions(0, 1, max_denominator=1000),
    st.sampled_from(DECAYS),
    powers,
    st.sampled_from(["warmup_end", "stage_start"]),
)
def test_rate_is_the_recipes(step: tuple[int, int], share: Fraction, decay: str, power: float, decay_from: str) -> None:
    t, total = step
    warmup = share * total
    if warmup == total:
        return  # 0 / 0 by the recipe: see below
    got = rate_factor(t, total, warmup, decay, power, decay_from)  # type: ignore[arg-type]
    if t == total and decay != "constant":
        assert got == 0
    # the float formula loses digits where 1 - p is small, and a root magnifies that
    want = by_definition(t, total, warmup, decay, power, decay_from)
    assert got == pytest.approx(want, rel=1e-6, abs=1e-15 ** min(1, power) * 40)


@given(totals, st.fractions(0, 1), st.sampled_from(DECAYS), powers, st.sampled_from(["warmup_end", "stage_start"]))
def test_rate_is_within_bounds_and_turns_once(
    total: int, share: Fraction, decay: str, power: float, decay_from: str
) -> None:
    warmup = share * total
    shown = sorted(
        {
            1,
            total,
            *(max(1, min(total, math.floor(warmup) + i)) for i in range(-2, 4)),
            *range(1, total, total // 50 + 1),
        }
    )
    rates = [(t, rate_factor(t, total, warmup, decay, power, decay_from)) for t in shown]  # type: ignore[arg-type]
    assert all(0 <= rate <= 1 for _, rate in rates)
    rise = [rate for t, rate in rates if t < warmup]
    fall = [rate for t, rate in rates if t >= warmup]
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)


def test_the_decay_counts_from_the_warmups_end_or_from_the_start() -> None:
    from_end = [rate_factor(t, 10, 5, "linear", 1.0, "warmup_end") for t in range(1, 11)]
    from_start = [rate_factor(t, 10, 5, "linear", 1.0, "stage_start") for t in range(1, 11)]
    assert from_end == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert from_start == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1, 0])


def test_warmup_that_fills_the_stage() -> None:
    assert [rate_factor(t, 4, 4, "linear") for t in range(1, 5)] == [0.25, 0.5, 0.75, 0]
    assert [rate_factor(t, 4, 4, "constant") for t in range(1, 5)] == [0.25, 0.5, 0.75, 1]
    assert [rate_factor(t, 4, 4, "linear", 1.0, "stage_start") for t in range(1, 5)] == [0.25, 0.5, 0.75, 0]
    assert [rate_factor(t, 2, 4, "linear") for t in (1, 2)] == [0.25, 0.5]
    assert rate_factor(1, 1) == 0
    assert rate_factor(1, 1, decay="constant") == 1


def test_rationals_stay_exact_where_floats_do_not() -> None:
    # 2^60 + 1 steps: as floats, the last but one and the last are the same number
    total = 2**60 + 1
    assert rate_factor(total - 1, total, decay="linear") == pytest.approx(1 / total, rel=1e-15)
    assert rate_factor(total, total, decay="linear") == 0
    assert warmup_factor(3, Fraction(10**30, 3)) == pytest.approx(9e-30, rel=1e-15)
    # beyond what a float can hold
    assert warmup_factor(10**400, 10**401) == 0.1
    # 1 + cos(pi p) would have 4 digits left here
    assert rate_factor(10**6 - 1, 10**6, decay="cosine") == pytest.approx((math.pi / 2 * 1e-6) ** 2, rel=1e-9)


def test_defaults_are_a_straight_line_to_0() -> None:
    assert [rate_factor(t, 4) for t in range(1, 5)] == [0.75, 0.5, 0.25, 0]
    assert [decay_factor("polynomial", p / 4) for p in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_refused() -> None:
    refuses("step is 0", call=lambda: warmup_factor(0, 5))
    refuses("step is 1.5", call=lambda: warmup_factor(1.5, 5))  # type: ignore[arg-type]
    for warmup in (-1, math.inf, math.nan, "5"):
        refuses("warmup_steps is", call=lambda w=warmup: warmup_factor(1, w))
        refuses("warmup_steps is", call=lambda w=warmup: rate_factor(1, 5, w))
    refuses("'exponential'", "constant, linear", call=lambda: decay_factor("exponential", 0))  # type: ignore[arg-type]
    for progress in (-0.1, 1.1, math.nan):
        refuses("progress is", call=lambda p=progress: decay_factor("linear", p))
    for power in (0, -1, math.inf):
        refuses("power is", "above 0", call=lambda p=power: decay_factor("polynomial", 0, p))
    refuses("step is 6", "from 1 to 5", call=lambda: rate_factor(6, 5))
    refuses("step is 0", call=lambda: rate_factor(0, 5))
    refuses("total_steps is 0", call=lambda: rate_factor(1, 0))
    refuses("'middle'", call=lambda: rate_factor(1, 1, decay_from="middle"))  # type: ignore[arg-type]
    refuses("'exponential'", call=lambda: rate_factor(5, 5, decay="exponential"))  # type: ignore[arg-type]
