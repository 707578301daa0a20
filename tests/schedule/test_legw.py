from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import LEGW, warmup_factor

from .sentences import refuses

BATCHES = [512, 1024, 2048, 4096, 8192, 16384, 32768]
HALF_POWERS = [3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0]


# -- the paper's tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "half_power", "share"),
    list(zip(BATCHES, HALF_POWERS, [320, 160, 80, 40, 20, 10, 5], strict=True)),
)
def test_bert_table(batch: int, half_power: float, share: int) -> None:
    legw = LEGW(512, "0.3125%")
    assert legw.warmup_share(batch) == Fraction(1, share)
    # the square of lr / base lr is a power of two: compare without a root
    assert legw.lr_factor(batch) == pytest.approx(2 ** (3 - half_power), rel=2e-16)
    base_lr = 5 / (2**3.0 * 10**3)
    assert base_lr * legw.lr_factor(batch) == pytest.approx(5 / (2**half_power * 10**3), rel=4e-16)


@pytest.mark.parametrize(
    ("batch", "half_power", "epochs"),
    list(zip(BATCHES, HALF_POWERS, ["0.3125", "0.625", "1.25", "2.5", "5", "10", "20"], strict=True)),
)
def test_resnet_table(batch: int, half_power: float, epochs: str) -> None:
    legw = LEGW(512, "0.3125 epochs")
    assert legw.warmup_epochs(batch) == Fraction(epochs)
    base_lr = 4 / (2**3.0 * 100)
    assert base_lr * legw.lr_factor(batch) == pytest.approx(4 / (2**half_power * 100), rel=4e-16)


def test_factor_of_even_powers_is_exact() -> None:
    assert [LEGW(512, "0 steps").lr_factor(batch) for batch in BATCHES[::2]] == [1.0, 2.0, 4.0, 8.0]


# -- the warmup in each unit -------------------------------------------------------------------------------------------

IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("base_warmup", "known", "steps"),
    [
        ("0.3125 epochs", {"samples_per_epoch": IMAGENET}, Fraction(5, 16) * IMAGENET / 512),
        ("782 steps", {}, 782),
        ("400_384 samples", {}, 782),
        ("128 tokens", {"tokens_per_sample": 2}, Fraction(1, 8)),
        ("0.3125%", {"total_samples": 512 * 64_000}, 200),
    ],
)
def test_warmup_steps(base_warmup: str, known: dict[str, int], steps: Fraction) -> None:
    legw = LEGW(512, base_warmup)
    assert legw.warmup_steps(**known) == steps
    for missing in known:
        refuses("base_warmup is", f"needs {missing}", call=legw.warmup_steps)


@given(
    st.sampled_from(["epochs", "steps", "samples", "tokens", "%"]),
    st.fractions(0, 50),
    st.integers(1, 10**5),
    st.integers(1, 64),
)
def test_epochs_grow_with_the_batch_and_steps_do_not(unit: str, value: Fraction, base: int, k: int) -> None:
    legw = LEGW(base, f"{value} {unit}")
    known = {"samples_per_epoch": 10_007, "total_samples": 900_001, "tokens_per_sample": 128}
    steps, epochs, share = (
        legw.warmup_steps(**known),
        legw.warmup_epochs(base, **known),
        legw.warmup_share(base, **known),
    )
    assert legw.warmup_epochs(k * base, **known) == k * epochs
    assert legw.warmup_share(k * base, **known) == k * share
    # what each of the three says, in samples at the base batch
    assert steps * base == epochs * known["samples_per_epoch"] == share * known["total_samples"]


def test_epochs_and_share_of_other_units_say_what_they_need() -> None:
    assert LEGW(256, "100 steps").warmup_epochs(512, samples_per_epoch=51_200) == 1
    assert LEGW(256, "100 steps").warmup_share(512, total_samples=512_000) == Fraction(1, 10)
    refuses('"100 steps"', "need samples_per_epoch", call=lambda: LEGW(256, "100 steps").warmup_epochs(512))
    refuses('"100 steps"', "need total_samples", call=lambda: LEGW(256, "100 steps").warmup_share(512))
    refuses("samples_per_epoch is 0", call=lambda: LEGW(256, "1 steps").warmup_epochs(1, samples_per_epoch=0))
    refuses("batch_size is 0", call=lambda: LEGW(256, "1 epochs").warmup_epochs(0))
    refuses("batch_size is 0", call=lambda: LEGW(256, "1%").warmup_share(0))


def test_the_rate_along_the_warmup_is_the_base_rates_times_root_k() -> None:
    legw = LEGW(512, "0.3125 epochs")
    steps = legw.warmup_steps(samples_per_epoch=IMAGENET)
    assert math.floor(steps) == 781
    rates = [legw.lr_factor(8192) * warmup_factor(t, steps) for t in (1, 781, 782, 783)]
    assert rates == pytest.approx([4 / float(steps), 4 * 781 / float(steps), 4, 4], rel=1e-15)


def test_other_rules() -> None:
    assert LEGW(256, "0 steps", "linear").lr_factor(4096) == 16
    assert LEGW(256, "0 steps", "none").lr_factor(4096) == 1
    assert LEGW(256, "0 steps", "linear_then_sqrt", 1024).lr_factor(4096) == 8


def test_refused() -> None:
    refuses("base_batch_size is 0", call=lambda: LEGW(0, "1 epoch"))
    refuses("base_warmup is '5'", '"5 epochs"', call=lambda: LEGW(256, "5"))
    refuses("base_warmup is 5", call=lambda: LEGW(256, 5))  # type: ignore[arg-type]
    refuses("'square'", call=lambda: LEGW(256, "1 epoch", "square"))  # type: ignore[arg-type]
    refuses("needs noise_scale", call=lambda: LEGW(256, "1 epoch", "linear_then_sqrt"))
    refuses("does not use it", call=lambda: LEGW(256, "1 epoch", "sqrt", 5.0))
    refuses("batch_size is -1", call=lambda: LEGW(256, "1 epoch").lr_factor(-1))
