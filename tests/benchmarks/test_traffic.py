"""The table of bytes, beside numbers counted by hand."""

from __future__ import annotations

import re

import pytest

from benchmarks.contestants import everyone
from benchmarks.measure.traffic import PASSES, bytes_per_element, least_bytes_per_element, table
from benchmarks.rows import ROWS
from lightning_scale.optim.registry import REGISTRY

# LAMB: 16 read and 8 written, then 12 read and 4 written. With master weights g is 2, and 2 more are written with w.
BY_HAND = {
    "AdamW": (28, 28, 28, 28),
    "SGD": (20, 20, 20, 20),
    "LAMB": (40, 28, 40, 28),
    "LARS": (28, 20, 26, 20),
    "LARS on the momentum": (28, 20, 28, 20),
    "AdamW8bit": (16, 16, 16, 16),
    "SGD8bit": (14, 14, 14, 14),
    "LAMB8bit": (26, 16, 24, 16),
    "LARS8bit": (22, 14, 20, 14),
}


@pytest.mark.parametrize("name", PASSES)
def test_bytes(name: str) -> None:
    found = [
        f(name, dtype) for dtype in ("float32", "bf16-master") for f in (bytes_per_element, least_bytes_per_element)
    ]
    assert tuple(found) == BY_HAND[name]


def test_the_test_for_nan_is_a_gradient_more() -> None:
    assert bytes_per_element("LAMB", tests_finite=True) == 44
    assert bytes_per_element("LAMB8bit", "bf16-master", tests_finite=True) == 26


def test_every_contestant_has_a_line() -> None:
    assert {c.traffic for c in everyone()} == set(PASSES)


def test_the_table_has_every_row() -> None:
    rows = re.findall(
        r"^\| ([\w ]+) \| \w+[^|]*→[^|]*\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", table(), flags=re.MULTILINE
    )
    assert {name: tuple(map(int, numbers)) for name, *numbers in rows} == BY_HAND


def test_every_optimizer_of_the_registry_is_measured() -> None:
    measured = {(entry.name, form) for entry, form in ROWS.values()}
    assert measured == {(name, "") for name in REGISTRY} | {("LARS", "momentum")}
