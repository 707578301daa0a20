from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import InsteadOfDecay

from .schedules import instead_of_decays
from .sentences import refuses

CIFAR = 50_000


def test_the_papers_wide_resnet_schedule() -> None:
    """Smith et al. 2018, section 5.1: 128 grows by 5 at epochs 60, 120 and 160, where the rate fell by 5."""
    schedule = InsteadOfDecay(128, ["60 epochs", "120 epochs", "160 epochs"], 0.2, samples_per_epoch=CIFAR)
    assert schedule.changes() == [(0, 128), (60 * CIFAR, 640), (120 * CIFAR, 3200), (160 * CIFAR, 16000)]
    assert [schedule.lr_factor(epoch * CIFAR) for epoch in (0, 60, 120, 160, 200)] == [1.0] * 5
    assert schedule.max_batch_size == 16000


def test_a_capped_batch_leaves_the_rest_to_the_rate() -> None:
    """The same schedule with the batch held at 640: the paper's hybrid, which then decays the rate."""
    milestones = ["60 epochs", "120 epochs", "160 epochs"]
    schedule = InsteadOfDecay(128, milestones, 0.2, 640, samples_per_epoch=CIFAR)
    assert schedule.changes() == [(0, 128), (60 * CIFAR, 640)]
    assert [schedule.lr_factor(epoch * CIFAR) for epoch in (0, 60, 120, 160)] == [1.0, 1.0, 0.2, 0.04]
    assert schedule.lr_factor(120 * CIFAR - 1) == 1
    assert schedule.max_batch_size == 640


def test_a_cap_between_two_sizes() -> None:
    schedule = InsteadOfDecay(256, ["1M samples", "2M samples"], max_batch_size=8192)
    assert schedule.changes() == [(0, 256), (1_000_000, 2560), (2_000_000, 8192)]
    assert schedule.lr_factor(1_500_000) == 1
    # 25,600 would have been needed, 8,192 are there
    assert schedule.lr_factor(2_000_000) == float(Fraction(8192, 25600))


def test_a_cap_at_the_start_is_a_step_decay() -> None:
    schedule = InsteadOfDecay(256, ["10 samples", "20 samples"], 0.1, max_batch_size=256)
    assert schedule.changes() == [(0, 256)]
    assert [schedule.lr_factor(samples) for samples in (9, 10, 19, 20)] == [1.0, 0.1, 0.1, 0.01]


@given(instead_of_decays(), st.integers(0, 10**12))
def test_rate_over_batch_is_that_of_the_step_decay(schedule: InsteadOfDecay, samples: int) -> None:
    passed = sum(milestone <= samples for milestone in schedule._starts[1:])
    noise = Fraction(schedule.lr_factor(samples)) / schedule.batch_size(samples)
    assert float(noise) == pytest.approx(float(schedule.factor**passed / schedule.start), rel=1e-15)
    assert 0 < schedule.lr_factor(samples) <= 1


@pytest.mark.parametrize(
    ("factor", "exact"),
    [
        (0.1, Fraction(1, 10)),
        (1 / 3, Fraction(1, 3)),
        (0.2, Fraction(1, 5)),
        (2 / 3, Fraction(2, 3)),
        (0.5, Fraction(1, 2)),
    ],
)
def test_a_float_factor_is_the_fraction_it_stands_for(factor: float, exact: Fraction) -> None:
    schedule = InsteadOfDecay(4, ["1 samples", "2 samples"], factor)
    assert schedule.factor == exact
    assert schedule.batch_size(2) == 4 / exact**2


def test_milestones_in_tokens_and_between_samples_round_up() -> None:
    schedule = InsteadOfDecay(8, ["1000 tokens", "3K tokens"], 0.5, tokens_per_sample=300)
    assert schedule.changes() == [(0, 8), (4, 16), (10, 32)]


def test_refused() -> None:
    def make(
        milestones: object = ("30M samples", "60M samples"),
        factor: object = 0.1,
        cap: object = None,
        start: object = 256,
    ) -> Callable[[], object]:
        return lambda: InsteadOfDecay(start, milestones, factor, cap)  # type: ignore[arg-type]

    refuses("start is 0", call=make(start=0))
    for milestones in ((), "30M samples", None):
        refuses("milestones is", '["30 epochs", "60 epochs"]', call=make(milestones))
    refuses("milestones[1] is 60", '"60 samples"', call=make(["30 samples", 60]))
    refuses("milestones[0] is '30 steps'", '"1 epochs"', call=make(["30 steps"]))
    refuses("milestones[0] is", "needs samples_per_epoch", call=make(["30 epochs"]))
    refuses("milestones[0] is", "needs tokens_per_sample", call=make(["30 tokens"]))
    refuses('milestones[0] is "0 samples"', "after the start", "rising order", call=make(["0 samples"]))
    refuses('milestones[1] is "3 samples"', "after the one before it", call=make(["3 samples", "3 samples"]))
    for factor in (0, -0.1, 1, 1.5, float("nan"), True):
        refuses("factor is", call=make(factor=factor))
    refuses("factor 0.3", "853.333", "a multiple of 9", call=make(factor=0.3))
    refuses("milestones[0]", "382.5", "a multiple of 4", call=make(factor=2 / 3, start=255))
    refuses("milestones[1]", "580.5", "a multiple of 4", call=make(factor=2 / 3, start=258))
    refuses("max_batch_size is 128", "at least 256", call=make(cap=128))
    refuses("max_batch_size is 1.5", call=make(cap=1.5))


def test_a_size_beyond_the_cap_need_not_come_out_whole() -> None:
    schedule = InsteadOfDecay(256, ["1 samples"], 0.3, max_batch_size=512)
    assert schedule.changes() == [(0, 256), (1, 512)]
    assert schedule.lr_factor(1) == 0.6
