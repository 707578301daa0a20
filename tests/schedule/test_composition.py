from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import LEGW, Rate, Stage, StagePlan, compose_rate

from .sentences import refuses

LEGW_256 = LEGW(256, "0.5 epochs")
PLAN = StagePlan(
    [
        Stage(128, 10, 256, lr=0.5, warmup="4 steps", decay="linear"),
        Stage(256, 10, 1024, warmup="40%", decay="constant"),
        Stage(512, 10, 1024, decay="linear"),
        Stage(512, 10, 1024, warmup="1 epoch", decay="constant"),
    ]
)


def test_nothing_changes_nothing() -> None:
    assert compose_rate(step=1, batch_size=77) == Rate(None, 1.0)
    assert compose_rate(step=10**9, batch_size=77).of(3e-4) == 3e-4


def test_rate_of_base() -> None:
    assert Rate(None, 0.5).of(4.0) == 2.0
    assert Rate(3.0, 0.5).of(4.0) == 1.5
    assert Rate(0.0, 0.5).of(4.0) == 0.0


# -- (a) no plan -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 10**5), st.fractions(0, 10**5), st.floats(0, 10))
def test_legw_and_ramp_multiply(step: int, batch: int, warmup: Fraction, ramp: float) -> None:
    got = compose_rate(step=step, batch_size=batch, legw=LEGW_256, legw_warmup_steps=warmup, ramp_factor=ramp)
    ramped_up = 1.0 if step >= warmup else step / float(warmup)
    assert got.absolute is None
    assert got.factor == pytest.approx((batch / 256) ** 0.5 * ramped_up * ramp, rel=1e-12)


def test_legw_along_its_warmup() -> None:
    factors = [
        compose_rate(step=step, batch_size=1024, legw=LEGW_256, legw_warmup_steps=4).factor for step in range(1, 7)
    ]
    assert factors == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_legw_knows_some_warmups_itself() -> None:
    assert compose_rate(step=1, batch_size=256, legw=LEGW(256, "4 steps")).factor == 0.25
    assert compose_rate(step=1, batch_size=256, legw=LEGW(256, "512 samples")).factor == 0.5
    assert compose_rate(step=1, batch_size=256, legw=LEGW(256, "4 steps"), legw_warmup_steps=2).factor == 0.5
    refuses("base_warmup is", "samples_per_epoch", call=lambda: compose_rate(step=1, batch_size=1, legw=LEGW_256))


def test_ramp_alone() -> None:
    assert compose_rate(step=5, batch_size=64, ramp_factor=0.3) == Rate(None, 0.3)


# -- (b) a stage with a rate of its own --------------------------------------------------------------------------------


def test_a_stages_own_rate_is_absolute_and_alone() -> None:
    alone = [compose_rate(step=step, batch_size=256, plan=PLAN) for step in range(1, 11)]
    assert {rate.absolute for rate in alone} == {0.5}
    assert [rate.factor for rate in alone] == pytest.approx([0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0])
    for step, rate in enumerate(alone, 1):
        beside = compose_rate(
            step=step, batch_size=4096, plan=PLAN, legw=LEGW_256, legw_warmup_steps=9, ramp_factor=0.1
        )
        assert beside == rate
        assert rate.of(99.0) == PLAN.lr(step)


def test_a_stage_without_warmup_but_with_a_rate_takes_none_from_legw() -> None:
    plan = StagePlan([Stage(128, 10, 256, lr=0.5, decay="constant")])
    assert compose_rate(step=1, batch_size=256, plan=plan, legw=LEGW_256, legw_warmup_steps=5) == Rate(0.5, 1.0)


def test_a_rate_of_0_is_a_rate() -> None:
    plan = StagePlan([Stage(128, 10, 256, lr=0.0)])
    assert compose_rate(step=1, batch_size=256, plan=plan).of(1.0) == 0


# -- (c) a stage without -----------------------------------------------------------------------------------------------


def test_a_stages_own_warmup_comes_before_legws() -> None:
    rates = [
        compose_rate(step=10 + step, batch_size=1024, plan=PLAN, legw=LEGW_256, legw_warmup_steps=8, ramp_factor=0.5)
        for step in range(1, 6)
    ]
    assert rates == [Rate(None, factor) for factor in (0.25, 0.5, 0.75, 1.0, 1.0)]


def test_without_one_legws_counts_from_the_stages_start() -> None:
    factors = [
        compose_rate(step=20 + step, batch_size=1024, plan=PLAN, legw=LEGW_256, legw_warmup_steps=5).factor
        for step in range(1, 11)
    ]
    assert factors == pytest.approx([0.4, 0.8, 1.2, 1.6, 2, 1.6, 1.2, 0.8, 0.4, 0])


def test_without_legw_the_base_rate_follows_the_stage() -> None:
    got = [compose_rate(step=20 + step, batch_size=1024, plan=PLAN, ramp_factor=0.5) for step in (1, 5, 10)]
    assert [rate.absolute for rate in got] == [None] * 3
    assert [rate.factor for rate in got] == pytest.approx([0.45, 0.25, 0])


def test_the_stages_warmup_may_be_given() -> None:
    step = {"step": 31, "batch_size": 1024, "plan": PLAN}
    refuses("warmup is", "needs samples_per_epoch", call=lambda: compose_rate(**step))
    assert compose_rate(**step, stage_warmup_steps=Fraction(8)).factor == 0.125
    legw = {"legw": LEGW_256, "legw_warmup_steps": 4}
    assert compose_rate(**step, **legw, stage_warmup_steps=Fraction(8)).factor == 0.25
    # none of its own: LEGW's
    assert compose_rate(**step, **legw, stage_warmup_steps=Fraction(0)).factor == 0.5
    own = compose_rate(step=1, batch_size=256, plan=PLAN, stage_warmup_steps=Fraction(10))
    assert own == Rate(0.5, 0.1)


# -- refused -----------------------------------------------------------------------------------------------------------


def test_refused() -> None:
    refuses("step is 0", call=lambda: compose_rate(step=0, batch_size=1))
    refuses("step is 41", "beyond", call=lambda: compose_rate(step=41, batch_size=1, plan=PLAN))
    refuses("ramp_factor is -1", call=lambda: compose_rate(step=1, batch_size=1, ramp_factor=-1))
    refuses("batch_size is 0", call=lambda: compose_rate(step=1, batch_size=0, legw=LEGW(1, "0 steps")))
    refuses(
        "legw_warmup_steps is 5",
        "no legw",
        "give legw",
        call=lambda: compose_rate(step=1, batch_size=1, legw_warmup_steps=5),
    )
    refuses(
        "stage_warmup_steps is 5",
        "no plan",
        call=lambda: compose_rate(step=1, batch_size=1, stage_warmup_steps=Fraction(5)),
    )
