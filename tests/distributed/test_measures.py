"""What other tests measure by: a NaN is as far away as can be."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_scale.optim import LayerRule, LayerStats
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


def _optimizer(weight: float, ratio: float = 1.0, lr: float = 0.1) -> Any:
    """Of two layers, the last with these statistics; its update has norm 1."""
    stats = {
        name: LayerStats(*map(torch.tensor, (w, 1.0, r)))
        for name, w, r in (("first", 1.0, 1.0), ("last", weight, ratio))
    }
    rules = {name: LayerRule(lr, True, None) for name in stats}
    return SimpleNamespace(layer_stats=lambda: stats, layer_rules=lambda: rules)


def test_of_statistics() -> None:
    assert relative_stats(_optimizer(NAN), _optimizer(1.0)) == math.inf
    assert relative_stats(_optimizer(1.0), _optimizer(NAN)) == math.inf
    assert relative_stats(_optimizer(1.5), _optimizer(1.0)) == 0.5
    assert relative_stats(_optimizer(1.0, ratio=1.5), _optimizer(1.0)) == 0.5


def test_a_weight_on_its_way_through_zero_is_measured_by_the_step() -> None:
    assert relative_stats(_optimizer(0.25, lr=1.0), _optimizer(0.0, lr=1.0)) == 0.25
    assert relative_stats(_optimizer(0.25, lr=0.5), _optimizer(0.0, ratio=1.0, lr=0.5)) == 0.5


def test_of_whole_runs() -> None:
    def run(weight: float, stat: float) -> dict[str, Any]:
        weights = {"first": torch.ones(2), "last": torch.tensor([weight])}
        return {"weights": weights, "stats": {"first": [1.0], "last": [stat]}}

    assert worst(run(NAN, 1.0), run(1.0, 1.0)) == (math.inf, 0.0)
    assert worst(run(1.0, NAN), run(1.0, 1.0)) == (0.0, math.inf)
    assert worst(run(1.0, 1.0), run(1.0, 1.0)) == (0.0, 0.0)
