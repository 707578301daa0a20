"""Amounts with a unit, as users write them: "2000 steps", "12.8%", "5 epochs", "1M samples", "20B tokens"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import Literal, get_args

from lightning_scale.schedule.checks import one_of

Unit = Literal["steps", "samples", "tokens", "epochs", "%"]
UNITS: tuple[Unit, ...] = get_args(Unit)

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
# 3, 1_000, 12.8, .5, 1e6 or 1/320, then K, M or B. An exponent has two digits at most: "1e999999999" must not hang.
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?P<number>{_DIGITS}/{_DIGITS}|(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,2}})?)"
    r"\s*(?P<suffix>[kKmMbB](?![A-Za-z])|)"
)


@dataclass(frozen=True)
class Quantity:
    """An exact amount and its unit.

    Args:
        value: The amount, at least 0. Of "12.8%" it is 64/5: percent, not the share.
        unit: "steps" (optimizer steps), "samples", "tokens", "epochs" or "%".

    Raises:
        ValueError: for a negative or inexact value, or another unit.
    """

    value: Fraction
    unit: Unit

    def __post_init__(self) -> None:
        one_of("the unit of a quantity", self.unit, UNITS)
        if isinstance(self.value, bool) or not isinstance(self.value, (int, Fraction)) or self.value < 0:
            raise ValueError(f"the value of a quantity is {self.value!r}: give a Fraction or an int of at least 0.")
        object.__setattr__(self, "value", Fraction(self.value))

    @classmethod
    def parse(cls, text: str | Quantity, allowed: Sequence[Unit] | None = None, name: str = "quantity") -> Quantity:
        """Reads what a user wrote.

        Numbers may be written as 3, 1_000, 12.8, 1e6 or 1/320, with K (10^3), M (10^6) or B (10^9) after them.

        Args:
            text: What was written; a ``Quantity`` is only checked against ``allowed``.
            allowed: The units that make sense here; ``None`` for all.
            name: What the quantity is for, to begin the error's sentence with.

        Raises:
            ValueError: for anything else than a number of at least 0 and an allowed unit.
        """
        units = UNITS if allowed is None else tuple(allowed)
        if isinstance(text, Quantity):
            if text.unit not in units:
                raise ValueError(f'{name} is "{text}", but its unit is not one of those for it: {_advice("1", units)}.')
            return text
        if isinstance(text, (bool, int, float)):
            number = "1" if isinstance(text, bool) or text in (inf, -inf) or text != text else str(abs(text))
            raise ValueError(f"{name} is {text!r}, without a unit: {_advice(number, units)}.")
        match = _NUMBER.match(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{name} is {text!r}, not a number and a unit: {_advice('1', units)}.")
        written = match.group().strip().lstrip("-+")
        value = _value(match, name, text)
        unit_text = text.strip()[match.end() :].strip().lower()
        unit = next((u for u in UNITS if unit_text in (u, u.removesuffix("s"))), None)
        if not unit_text:
            raise ValueError(f"{name} is {text!r}, without a unit: {_advice(written, units)}.")
        if unit is None:
            raise ValueError(f"{name} is {text!r}, with the unknown unit {unit_text!r}: {_advice(written, units)}.")
        if match["sign"] == "-":
            raise ValueError(f"{name} is {text!r}, below 0: {_advice(written, (unit,))}.")
        if unit not in units:
            raise ValueError(f"{name} is {text!r}, but its unit is not one of those for it: {_advice('1', units)}.")
        return cls(value, unit)

    def __str__(self) -> str:
        """The shortest exact text; ``parse`` gives an equal quantity back."""
        return f"{_exact(self.value)}{'' if self.unit == '%' else ' '}{self.unit}"


def parse_count(text: str | int, name: str = "count") -> int:
    """A whole number of at least 0, such as 1000, "1_000", "1M" or "1.5K".

    Args:
        text: What was written.
        name: What is counted, to begin the error's sentence with.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    value = None if match is None or match["sign"] == "-" else _value(match, name, text)
    if value is None or value.denominator != 1:
        raise ValueError(f'{name} is {text!r}: write a whole number of at least 0, such as 1000, "1_000" or "1M".')
    return value.numerator


def _value(match: re.Match[str], name: str, text: object) -> Fraction:
    try:
        number = Fraction(match["number"].replace("_", ""))
    except ZeroDivisionError:
        raise ValueError(f'{name} is {text!r}, which divides by 0: write a number such as "1/320".') from None
    return number * _SUFFIXES[match["suffix"].lower()]


def _advice(number: str, units: Sequence[Unit]) -> str:
    examples = [f'"{number}%"' if unit == "%" else f'"{number} {unit}"' for unit in units]
    return "write " + " or ".join(filter(None, [", ".join(examples[:-1]), examples[-1]]))


def _exact(value: Fraction) -> str:
    """Decimal digits where they end, else "numerator/denominator"."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    if places == 0:
        return str(value.numerator)
    digits = str(value.numerator * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}"
