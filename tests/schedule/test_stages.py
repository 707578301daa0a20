from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import LinearRamp, Stage, rate_factor

from .schedules import every_kind
from .sentences import refuses


def stage(**changes: Any) -> Stage:
    return Stage(**{"sequence_length": 128, "steps": 100, "batch_size": 64, **changes})


def test_defaults() -> None:
    plain = stage()
    assert (plain.lr, plain.micro_batch_size, plain.warmup) == (None, None, "0 steps")
    assert (plain.decay, plain.power, plain.decay_from) == ("polynomial", 1.0, "warmup_end")
    assert (plain.moments, plain.bias_correction_step) == ("keep", "keep")
    with pytest.raises(FrozenInstanceError):
        plain.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [
        ("0 steps", 0),
        ("7.5 steps", Fraction(15, 2)),
        ("12.8%", Fraction(64, 5)),
        ("100%", 100),
        ("1000 samples", Fraction(1000, 64)),
        ("16384 tokens", 2),
    ],
)
def test_warmup_steps(warmup: str, steps: Fraction) -> None:
    assert stage(warmup=warmup).warmup_steps() == steps
    assert stage(warmup=warmup).warmup_steps(samples_per_epoch=5) == steps


def test_warmup_in_epochs() -> None:
    one = stage(warmup="0.5 epochs")
    assert one.warmup_steps(samples_per_epoch=1000) == Fraction(500, 64)
    refuses("warmup is", "needs samples_per_epoch", call=one.warmup_steps)
    refuses("needs samples_per_epoch", call=lambda: one.rate_factor(1))
    says = ('warmup is "0.5 epochs"', "longer than the stage's 100 steps", '"100 steps"')
    refuses(*says, call=lambda: one.warmup_steps(samples_per_epoch=12_801))
    assert one.warmup_steps(samples_per_epoch=12_800) == 100
    assert one.rate_factor(1, Fraction(4)) == 0.25


@given(every_kind, st.integers(1, 50))
def test_warmup_in_samples_follows_a_growing_batch(schedule: Any, steps: int) -> None:
    samples = schedule.samples_after(steps)
    one = stage(batch_size=schedule, warmup=f"{samples} samples")
    assert one.warmup_steps() == steps


def test_warmup_in_samples_of_a_ramp_by_hand() -> None:
    # 16 for 2 steps (to 32), 32 for 1 (to 64), then 48 a step: 100 samples are 3 steps and 36/48 of the next
    one = stage(batch_size="0:16 20:32 50:48", warmup="100 samples")
    assert one.warmup_steps() == Fraction(15, 4)
    assert one.total_samples == 64 + 97 * 48


@pytest.mark.parametrize("batch_size", [64, "64", "0:64", LinearRamp(64, 64, "1 samples")])
def test_batch_size_in_every_form(batch_size: Any) -> None:
    one = stage(batch_size=batch_size, micro_batch_size=16)
    assert one.schedule.changes() == [(0, 64)]
    assert one.total_samples == 6400


@given(st.integers(1, 100), st.fractions(0, 100), st.floats(1e-6, 10))
def test_rate_is_lr_times_the_shape(step: int, warmup: Fraction, lr: float) -> None:
    one = stage(lr=lr, warmup=f"{warmup}%", power=0.5, decay_from="stage_start")
    factor = rate_factor(step, 100, warmup, "polynomial", 0.5, "stage_start")
    assert one.rate_factor(step) == factor
    assert one.rate(step) == lr * factor
    other = rate_factor(step, 100, Fraction(3), "polynomial", 0.5, "stage_start")
    assert one.rate_factor(step, Fraction(3)) == other
    assert one.rate(step, Fraction(3)) == lr * other


def test_shape_arguments_reach_the_shape() -> None:
    assert stage(decay="cosine").rate_factor(50) == pytest.approx(0.5)
    assert stage(decay="constant").rate_factor(100) == 1
    assert stage(power=2.0).rate_factor(50) == 0.25
    assert stage(warmup="50%").rate_factor(75) == 0.5
    assert stage(warmup="50%", decay_from="stage_start").rate_factor(75) == 0.25


def test_rate_of_a_stage_without_lr() -> None:
    refuses("no lr", "give the stage an lr", call=lambda: stage().rate(1))
    assert stage(lr=0).rate(1) == 0


def test_steps_outside_the_stage() -> None:
    refuses("step is 101", "from 1 to 100", call=lambda: stage(lr=1.0).rate(101))
    refuses("step is 0", call=lambda: stage().rate_factor(0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sequence_length": 0}, ("sequence_length is 0",)),
        ({"steps": 0}, ("steps is 0",)),
        ({"steps": 1.5}, ("steps is 1.5",)),
        ({"batch_size": 0}, ("batch_size is 0",)),
        ({"batch_size": "32K"}, ("'32K'",)),
        ({"micro_batch_size": 0}, ("micro_batch_size is 0",)),
        ({"micro_batch_size": 48}, ("batch_size is 64", "micro_batch_size 48", "write batch_size 48 or 96")),
        ({"micro_batch_size": 100}, ("write batch_size 100,",)),
        ({"micro_batch_size": 48, "batch_size": "0:64"}, ("write batch_size 48 or 96",)),
        ({"lr": -1e-3}, ("lr is -0.001",)),
        ({"lr": float("inf")}, ("lr is inf",)),
        ({"lr": "6e-3"}, ("lr is '6e-3'",)),
        ({"power": 0.0}, ("power is 0.0", "above 0")),
        ({"power": 0.5, "decay": "cosine"}, ("power is 0.5", '"cosine" does not use it', '"polynomial"')),
        ({"decay": "exponential"}, ("decay is 'exponential'", "constant, linear, cosine or polynomial")),
        ({"decay_from": "start"}, ("decay_from is 'start'", "warmup_end or stage_start")),
        ({"moments": "zero"}, ("moments is 'zero'", "keep or reset")),
        ({"bias_correction_step": True}, ("bias_correction_step is True", "keep or reset")),
        ({"warmup": "2000"}, ("warmup is '2000'", '"2000 steps"')),
        ({"warmup": 10}, ("warmup is 10", '"10 steps"')),
        ({"warmup": "101 steps"}, ('warmup is "101 steps"', "longer than the stage's 100 steps", '"100 steps"')),
        ({"warmup": "100.1%"}, ("longer than the stage's 100 steps",)),
        ({"warmup": "6401 samples"}, ("longer than the stage's 100 steps",)),
        ({"warmup": "1M tokens"}, ("longer than the stage's 100 steps",)),
    ],
)
def test_refused(changes: dict[str, Any], says: tuple[str, ...]) -> None:
    refuses(*says, call=lambda: stage(**changes))
    if set(changes) != {"micro_batch_size"}:
        refuses(*says, call=lambda: replace(stage(), **changes))


def test_a_growing_batch_need_not_be_a_multiple_of_the_micro_batch() -> None:
    assert stage(batch_size="0:64 1000:128", micro_batch_size=48).micro_batch_size == 48
