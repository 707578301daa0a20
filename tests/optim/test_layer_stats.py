"""layer_stats(): names and numbers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS, LAMB8bit, LARS8bit

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


def _began_as_zeros(kind: Any, groups: Any, steps: int = 3, **options: Any) -> list[str]:
    """The warnings of some steps, of which the first has gradients that only the zeros need."""
    optimizer = kind(groups, lr=0.1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.full_like(p, 0.5 + step)
            optimizer.step()
    return [str(w.message) for w in caught if "began as zeros" in str(w.message)]


def _adapters() -> list[tuple[str, nn.Parameter]]:
    return [
        (f"{i}.lora_{x}", nn.Parameter(torch.full((4, 4), v))) for i in range(2) for x, v in (("A", 1.0), ("B", 0.0))
    ]


@pytest.mark.parametrize("kind", [LAMB, LARS, LAMB8bit, LARS8bit])
@pytest.mark.parametrize("fused", [None, False])
def test_layers_that_begin_as_zeros_are_named_once(kind: Any, fused: bool | None) -> None:
    (said,) = _began_as_zeros(kind, _adapters(), fused=fused)
    assert "'0.lora_B', '1.lora_B' began" in said and "lora_A" not in said
    assert kind.__name__ in said and '"layer_adaptation": False' in said
    unnamed = [nn.Parameter(torch.zeros(2, 2)) for _ in range(7)]
    (said,) = _began_as_zeros(kind, unnamed, fused=fused)
    assert "'0.0', '0.1', '0.2', '0.3', '0.4' and 2 more" in said


@pytest.mark.parametrize("kind", [LAMB, LARS])
def test_what_takes_no_ratio_or_has_a_lower_bound_may_begin_as_zeros(kind: Any) -> None:
    biases = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(0, 3))]
    assert not _began_as_zeros(kind, biases)
    assert not _began_as_zeros(kind, [{"params": _adapters(), "layer_adaptation": False}])
    for bound in ("weight_norm_clip", "trust_ratio_clip"):
        assert not _began_as_zeros(kind, _adapters(), **{bound: (0.01, 10.0)})
        assert _began_as_zeros(kind, _adapters(), **{bound: (0.0, 10.0)})
    assert _began_as_zeros(kind, [nn.Parameter(torch.zeros(4))], exclude_1d=False)


def test_zeros_are_looked_for_where_layers_come_later_and_in_no_skipped_step() -> None:
    first, second = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.zeros(3, 3))
    optimizer = LAMB([("first", first), ("second", second)])
    first.grad = torch.full((3, 3), torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        for _ in range(2):
            first.grad = torch.ones(3, 3)
            optimizer.step()
    second.grad = torch.ones(3, 3)
    with pytest.warns(UserWarning, match="'second' began as zeros"):
        optimizer.step()
    optimizer.add_param_group({"params": [("third", nn.Parameter(torch.ones(2, 2)))]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        copy.deepcopy(optimizer).step()
