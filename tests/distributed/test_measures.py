"""What other tests measure by: a NaN is as far away as can be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.distributed.meshes import largest, relative, relative_stats
from tests.distributed.zero_runs import worst

NAN = math.nan


@pytest.mark.parametrize("values", [[0.0, NAN], [NAN, 0.0], [0.1, NAN, 0.2]])
def test_the_largest_of_some(values: list[float]) -> None:
    assert largest(values) == math.inf
    assert largest([0.1, 0.3, 0.2]) == 0.3 and largest([]) == 0.0


def test_of_tensors() -> None:
    ones, broken = torch.ones(3), torch.tensor([1.0, 1.0, NAN])
    assert relative(broken, ones) == relative(ones, broken) == math.inf
    assert relative(2 * ones, ones) == 1.0


def _optimizer(value: float) -> Any:
    stats = {"first": (torch.tensor(1.0),), "last": (torch.tensor(value),)}
    return SimpleNamespace(layer_stats=lambda: stats)


def test_of_statistics() -> None:
    assert relative_stats(_optimizer(NAN), _optimizer(1.0)) == math.inf
    assert relative_stats(_optimizer(1.5), _optimizer(1.0)) == 0.5


def test_of_whole_runs() -> None:
    def run(weight: float, stat: float) -> dict[str, Any]:
        weights = {"first": torch.ones(2), "last": torch.tensor([weight])}
        return {"weights": weights, "stats": {"first": [1.0], "last": [stat]}}

    assert worst(run(NAN, 1.0), run(1.0, 1.0)) == (math.inf, 0.0)
    assert worst(run(1.0, NAN), run(1.0, 1.0)) == (0.0, math.inf)
    assert worst(run(1.0, 1.0), run(1.0, 1.0)) == (0.0, 0.0)
