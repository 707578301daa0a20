from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import lr_scale

from .sentences import refuses

sizes = st.integers(1, 10**7)
noises = st.floats(0.5, 1e7)


def by_definition(batch: int, base: int, noise: float) -> float:
    """f(B) / f(B0), as "linear_then_sqrt" is defined."""

    def f(size: int) -> float:
        return size if size <= noise else math.sqrt(noise * size)

    return f(batch) / f(base)


def test_the_four_rules() -> None:
    assert lr_scale("none", 4096, 256) == 1
    assert lr_scale("linear", 4096, 256) == 16
    assert lr_scale("sqrt", 4096, 256) == 4
    assert lr_scale("linear", 64, 256) == 0.25
    assert lr_scale("sqrt", 64, 256) == 0.5
    # linear from 256 to 1024 (4), then the root of 4096/1024 (2)
    assert lr_scale("linear_then_sqrt", 4096, 256, noise_scale=1024) == 8
    assert lr_scale("linear_then_sqrt", 256, 4096, noise_scale=1024) == 0.125
    assert lr_scale("linear_then_sqrt", 512, 256, noise_scale=1024) == 2
    assert lr_scale("linear_then_sqrt", 4096, 1024, noise_scale=256) == 2


@given(sizes, sizes, noises)
def test_linear_then_sqrt_is_its_definition(batch: int, base: int, noise: float) -> None:
    assert lr_scale("linear_then_sqrt", batch, base, noise) == pytest.approx(
        by_definition(batch, base, noise), rel=1e-13
    )


@given(sizes, sizes, sizes)
def test_linear_then_sqrt_is_continuous_at_the_noise_scale(batch: int, base: int, noise: int) -> None:
    assert lr_scale("linear_then_sqrt", noise, base, noise) == pytest.approx(
        lr_scale("linear_then_sqrt", noise, base, math.nextafter(noise, 0)), rel=1e-12
    )


@given(st.sampled_from(["linear", "sqrt", "linear_then_sqrt"]), sizes, sizes, noises)
def test_a_larger_batch_never_has_a_smaller_rate(rule: str, base: int, batch: int, noise: float) -> None:
    scale = noise if rule == "linear_then_sqrt" else None
    here, above = (lr_scale(rule, size, base, scale) for size in (batch, batch + 1))  # type: ignore[arg-type]
    assert above >= here * (1 - 1e-15)
    assert lr_scale(rule, base, base, scale) == 1  # type: ignore[arg-type]


@given(sizes, sizes, noises)
def test_linear_then_sqrt_lies_between_both(batch: int, base: int, noise: float) -> None:
    both = sorted([lr_scale("linear", batch, base), lr_scale("sqrt", batch, base)])
    assert both[0] * (1 - 1e-14) <= lr_scale("linear_then_sqrt", batch, base, noise) <= both[1] * (1 + 1e-14)


def test_refused() -> None:
    refuses("'cubic'", "none, linear, sqrt or", call=lambda: lr_scale("cubic", 1, 1))  # type: ignore[arg-type]
    refuses("needs noise_scale", 'write lr_scaling "sqrt"', call=lambda: lr_scale("linear_then_sqrt", 1, 1))
    refuses("noise_scale is 8", "does not use it", call=lambda: lr_scale("sqrt", 1, 1, 8))
    for noise in (0, -1.0, math.inf, math.nan, True):
        refuses("noise_scale is", "above 0", call=lambda n=noise: lr_scale("linear_then_sqrt", 1, 1, n))
    refuses("batch_size is 0", call=lambda: lr_scale("sqrt", 0, 1))
    refuses("base_batch_size is 0", call=lambda: lr_scale("sqrt", 1, 0))
    refuses("batch_size is 1.5", call=lambda: lr_scale("none", 1.5, 1))  # type: ignore[arg-type]
