"""On a machine with a GPU: `make test` runs the CPU tests as everywhere, and `-m gpu` those that need it."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest


@pytest.mark.parametrize(
    ("expression", "shown"),
    [("", False), ("not slow and not faults", False), ("not gpu", False), ("gpu", True), ("gpu and not slow", True)],
)  # fmt: skip
def test_a_gpu_is_shown_to_its_own_tests_alone(expression: str, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    config: Any = SimpleNamespace(option=SimpleNamespace(markexpr=expression), getoption=lambda name: False)
    conftest.pytest_configure(config)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["TRITON_INTERPRET"]) == (("0", "0") if shown else ("", "1"))
