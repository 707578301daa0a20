from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import Quantity, to_samples, to_steps

from .sentences import refuses

counts = st.integers(1, 10**15)


@pytest.mark.parametrize(
    ("text", "known", "steps"),
    [
        ("2000 steps", {}, 2000),
        ("28.43%", {"total_steps": 7038}, Fraction(20009034, 10**4)),
        ("1M samples", {"batch_size": 256}, Fraction(10**6, 256)),
        ("20B tokens", {"batch_size": 2048, "tokens_per_sample": 2048}, Fraction(20 * 10**9, 2048**2)),
        ("0.3125 epochs", {"batch_size": 512, "samples_per_epoch": 1281167}, Fraction(5, 16) * 1281167 / 512),
    ],
)
def test_to_steps(text: str, known: dict[str, int], steps: Fraction) -> None:
    assert to_steps(Quantity.parse(text), **known) == steps
    for missing in known:
        rest = {key: value for key, value in known.items() if key != missing}
        says = ("warmup is", f"needs {missing}", f"give {missing} or write warmup in another unit")
        refuses(*says, call=lambda rest=rest: to_steps(Quantity.parse(text), **rest, name="warmup"))
        refuses(missing, "0", call=lambda m=missing, r=rest: to_steps(Quantity.parse(text), **r, **{m: 0}))


@pytest.mark.parametrize(
    ("text", "known", "samples"),
    [
        ("2000 steps", {"batch_size": 256}, 512_000),
        ("12.8%", {"total_samples": 1001}, Fraction(128128, 1000)),
        ("1M samples", {}, 10**6),
        ("20B tokens", {"tokens_per_sample": 2048}, 9_765_625),
        ("1/3 epochs", {"samples_per_epoch": 1000}, Fraction(1000, 3)),
    ],
)
def test_to_samples(text: str, known: dict[str, int], samples: Fraction) -> None:
    assert to_samples(Quantity.parse(text), **known) == samples
    for missing in known:
        refuses(f"needs {missing}", call=lambda: to_samples(Quantity.parse(text)))
        refuses(missing, "-1", call=lambda m=missing: to_samples(Quantity.parse(text), **{m: -1}))


@given(st.fractions(min_value=0, max_value=10**12), counts, counts, counts)
def test_every_way_to_say_the_same_amount_is_the_same(steps: Fraction, batch: int, epoch: int, length: int) -> None:
    samples = steps * batch
    ways = [
        Quantity(steps, "steps"),
        Quantity(samples, "samples"),
        Quantity(samples * length, "tokens"),
        Quantity(samples / epoch, "epochs"),
    ]
    for way in ways:
        known = {"batch_size": batch, "samples_per_epoch": epoch, "tokens_per_sample": length}
        assert to_steps(way, **known) == steps
        assert to_samples(way, **known) == samples


def test_numbers_that_are_no_counts_are_refused() -> None:
    quantity = Quantity.parse("1 epoch")
    refuses("samples_per_epoch is 1.5", call=lambda: to_samples(quantity, samples_per_epoch=1.5))  # type: ignore[arg-type]
    refuses("samples_per_epoch is True", call=lambda: to_samples(quantity, samples_per_epoch=True))
