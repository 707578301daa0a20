"""LARS and LAMB on ZeRO's flat tensors take the step of whole parameters, whatever the window."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import run_ranks
from tests.distributed.zero_cases import CASES, truth
from tests.distributed.zero_runs import result, worst

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    pytest.mark.timeout(900),  # DeepSpeed compiles its operations at first
]


def ranks(folder: str) -> dict[str, Any]:
    return {name: result(Path(folder), case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(__name__, "ranks", tmp_path_factory.mktemp("zero"), 2, timeout=600)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_whole_parameters(name: str, found: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = truth(name, tmp_path)
    for rank in found:
        weights, stats = worst(rank[name], expected)
        assert rank[name]["skipped"] == expected["skipped"] == (CASES[name].nan_at is not None and "NaN" in name)
        assert weights <= 2e-6 and stats <= 1e-5, (weights, stats)
