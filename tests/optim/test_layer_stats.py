"""layer_stats(): names and numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS

from .pairs import arrays_of, to_numpy
from .reference import Options, lamb_step, lars_step


@pytest.mark.parametrize(
    ("one_step", "kind", "options"),
    [
        (lamb_step, LAMB, {"weight_decay": 0.1}),
        (lars_step, LARS, {"weight_decay": 0.1}),
        (lars_step, LARS, {"weight_decay": 0.1, "trust_norm": "momentum"}),
    ],
)
def test_layer_stats_are_of_the_last_step_under_the_parameters_names(
    one_step: Any, kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    optimizer: Any = kind(model.named_parameters(), lr=0.1, **options)
    states: dict[str, Any] = {name: {} for name, _ in model.named_parameters()}
    for step in range(3):
        gradients = arrays_of(step, [tuple(p.shape) for p in model.parameters()])
        expected = {}
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient)
            own = {} if parameter.ndim > 1 else {"weight_decay": 0.0, "layer_adaptation": False}
            base = {"eps": 1e-6 if kind is LAMB else 1e-8, "lr": 0.1}
            result = one_step(to_numpy(parameter), gradient, states[name], Options(**{**base, **options, **own}))
            states[name], expected[name] = result.state, result
        optimizer.step()
        stats = optimizer.layer_stats()
        assert set(stats) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        for name, result in expected.items():
            assert float(stats[name].weight_norm) == pytest.approx(result.weight_norm, rel=1e-14)
            assert float(stats[name].update_norm) == pytest.approx(result.update_norm, rel=1e-12)
            assert float(stats[name].trust_ratio) == pytest.approx(result.trust_ratio, rel=1e-12)
            assert all(value.ndim == 0 for value in stats[name])
        assert float(stats["0.bias"].trust_ratio) == 1.0


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_layer_stats_name_unnamed_parameters_by_group_and_index(kind: Any) -> None:
    first, second = [[nn.Parameter(torch.ones(2, 2)) for _ in range(n)] for n in (2, 3)]
    optimizer = kind([{"params": first}, {"params": second}], lr=0.1)
    for parameter in [*first, *second]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert set(optimizer.layer_stats()) == {"0.0", "0.1", "1.0", "1.1", "1.2"}
