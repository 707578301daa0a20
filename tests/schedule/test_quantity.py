from __future__ import annotations

from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.schedule import Quantity, parse_count
from lightning_scale.schedule.quantity import UNITS

from .sentences import refuses

values = st.fractions(min_value=0) | st.decimals(0, 10**12, places=6).map(Fraction) | st.integers(0).map(Fraction)
quantities = st.builds(Quantity, values, st.sampled_from(UNITS))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("2000 steps", 2000, "steps"),
        ("1 epoch", 1, "epochs"),
        ("0.3125 epochs", Fraction(5, 16), "epochs"),
        ("12.8%", Fraction(64, 5), "%"),
        ("12.8 %", Fraction(64, 5), "%"),
        ("28.43%", Fraction(2843, 100), "%"),
        ("1M samples", 10**6, "samples"),
        ("1 M samples", 10**6, "samples"),
        ("1.5K steps", 1500, "steps"),
        ("1.5k step", 1500, "steps"),
        ("20B tokens", 20 * 10**9, "tokens"),
        ("20 B tokens", 20 * 10**9, "tokens"),
        ("1_000 steps", 1000, "steps"),
        ("1_000.5 samples", Fraction(2001, 2), "samples"),
        ("  7   Samples ", 7, "samples"),
        ("7samples", 7, "samples"),
        ("5epochs", 5, "epochs"),
        ("1e6 samples", 10**6, "samples"),
        ("2.5E-3 epochs", Fraction(1, 400), "epochs"),
        (".5 epochs", Fraction(1, 2), "epochs"),
        ("5. epochs", 5, "epochs"),
        ("1/320 epochs", Fraction(1, 320), "epochs"),
        ("+3 steps", 3, "steps"),
        ("0 steps", 0, "steps"),
    ],
)
def test_parse(text: str, value: Fraction, unit: str) -> None:
    parsed = Quantity.parse(text)
    assert (parsed.value, parsed.unit) == (value, unit)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("28.43 %", "28.43%"),
        ("0.050 epochs", "0.05 epochs"),
        ("1.5K steps", "1500 steps"),
        ("2/6 epochs", "1/3 epochs"),
        ("1/8 epochs", "0.125 epochs"),
        ("1e-3 epochs", "0.001 epochs"),
        ("20B tokens", "20000000000 tokens"),
    ],
)
def test_text(text: str, written: str) -> None:
    assert str(Quantity.parse(text)) == written


@given(quantities)
def test_text_parses_back_to_an_equal_quantity(quantity: Quantity) -> None:
    assert Quantity.parse(str(quantity)) == quantity
    assert Quantity.parse(quantity) is quantity


@given(st.decimals(0, 10**9, places=4), st.sampled_from([("", 1), ("K", 10**3), ("M", 10**6), ("B", 10**9)]))
def test_suffix_is_exact(number: object, suffix: tuple[str, int]) -> None:
    assert Quantity.parse(f"{number}{suffix[0]} samples").value == Fraction(str(number)) * suffix[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (2000, ("warmup is 2000", "without a unit", '"2000 steps"', '"2000%"')),
        (-2000, ("warmup is -2000", '"2000 steps"')),
        (0.5, ("warmup is 0.5", '"0.5 epochs"')),
        (float("nan"), ("warmup is nan", '"1 steps"')),
        (float("-inf"), ("warmup is -inf", '"1 steps"')),
        (True, ("warmup is True", '"1 steps"')),
        ("2000", ("warmup is '2000'", "without a unit", '"2000 steps"')),
        ("1.5K", ("without a unit", '"1.5K steps"')),
        ("-5", ("without a unit", 'write "5 steps"')),
        ("-5 steps", ("below 0", 'write "5 steps".')),
        ("2 minutes", ("unknown unit 'minutes'", '"2 steps"')),
        ("2 bananas", ("unknown unit 'bananas'",)),
        ("2 kilosteps", ("unknown unit 'kilosteps'",)),
        ("1__0 steps", ("unknown unit",)),
        ("1/0 epochs", ("divides by 0",)),
        ("1e999999999 steps", ("unknown unit",)),
        ("steps", ("not a number and a unit",)),
        ("", ("not a number and a unit", '"1 steps"')),
        ("٣ steps", ("not a number and a unit",)),
        (None, ("warmup is None", "not a number and a unit")),
    ],
)
def test_refused(text: object, says: tuple[str, ...]) -> None:
    refuses("warmup", *says, call=lambda: Quantity.parse(text, name="warmup"))  # type: ignore[arg-type]


def test_units_that_make_no_sense_here_are_refused() -> None:
    says = ("over is", "its unit is not one of those", '"1 samples" or "1 tokens"')
    refuses(*says, call=lambda: Quantity.parse("5 epochs", ("samples", "tokens"), "over"))
    refuses(*says, call=lambda: Quantity.parse(Quantity(Fraction(5), "epochs"), ("samples", "tokens"), "over"))
    assert Quantity.parse("5 tokens", ("samples", "tokens")).unit == "tokens"


def test_advice_is_itself_accepted() -> None:
    with pytest.raises(ValueError) as caught:
        Quantity.parse("1.5K")
    advised = str(caught.value).split('"')[1::2]
    assert [Quantity.parse(text).value for text in advised] == [Fraction(1500)] * len(UNITS)


def test_a_quantity_checks_its_parts_and_stays_as_it_is() -> None:
    refuses("unit", "'hours'", "steps, samples", call=lambda: Quantity(Fraction(1), "hours"))  # type: ignore[arg-type]
    refuses("0.1", "Fraction", call=lambda: Quantity(0.1, "steps"))  # type: ignore[arg-type]
    refuses("-1", "at least 0", call=lambda: Quantity(Fraction(-1), "steps"))
    quantity = Quantity(3, "steps")  # type: ignore[arg-type]
    assert isinstance(quantity.value, Fraction)
    with pytest.raises(FrozenInstanceError):
        quantity.unit = "%"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1M", 10**6),
        ("1.5K", 1500),
        ("4B", 4 * 10**9),
        ("1_000", 1000),
        ("0", 0),
        (7, 7),
        (0, 0),
        ("1e3", 1000),
        (" 3 K ", 3000),
    ],
)
def test_parse_count(text: str | int, count: int) -> None:
    parsed = parse_count(text)
    assert parsed == count
    assert type(parsed) is int


@pytest.mark.parametrize("text", ["1.5", "-1", -1, "1 sample", "", "K", True, 1.0, None, "1/3"])
def test_parse_count_refuses(text: object) -> None:
    refuses("batches is", '"1M"', call=lambda: parse_count(text, "batches"))  # type: ignore[arg-type]
