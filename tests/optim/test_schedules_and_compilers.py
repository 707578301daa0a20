"""What schedules write into groups in any form, and steps inside of functions that torch.compile compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_scale.optim import LARS

from .kinds import AllLARS8bit, AllSGD8bit, Make, bits, every_kind, every_layerwise_kind, model_of, set_gradients, train

RATES: dict[str, Callable[[float], Any]] = {
    "float32": np.float32,
    "float64": np.float64,
    "0-d": torch.tensor,
    "[1]": lambda rate: torch.tensor([rate]),
}
every_rate = pytest.mark.parametrize("form", RATES.values(), ids=RATES)


@every_kind
@every_rate
def test_a_rate_may_be_numpys_or_a_tensor_of_one_element(make: Make, form: Callable[[float], Any]) -> None:
    """0.125 is the same in float32 and float64."""
    for options in ({}, {"fused": False}):
        ours, theirs = model_of(), model_of()
        first, second = (
            make(ours.parameters(), lr=form(0.125), **options),
            make(theirs.parameters(), lr=0.125, **options),
        )
        train(ours, first, range(2))
        train(theirs, second, range(2))
        first.param_groups[0]["lr"], second.param_groups[0]["lr"] = form(0.25), 0.25
        train(ours, first, range(2, 4))
        train(theirs, second, range(2, 4))
        assert bits(ours) == bits(theirs) and bits(first) == bits(second)


@every_layerwise_kind
@every_rate
def test_rules_have_0d_rates(make: Make, form: Callable[[float], Any]) -> None:
    model = model_of()
    optimizer = make(model.parameters(), lr=form(0.125))
    train(model, optimizer, range(1))
    for rule in optimizer.layer_rules().values():
        assert float(rule.lr) == 0.125 and not getattr(rule.lr, "shape", ())


@pytest.mark.parametrize("value", [torch.ones(2), True, "0.1", None, np.ones(1), -np.float32(1), torch.tensor([-1.0])])
def test_other_rates_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lr is"):
        LARS(model_of().parameters(), lr=value)


@pytest.mark.parametrize("kind", [LARS, AllLARS8bit, AllSGD8bit])
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_schedule_may_take_the_momentum_to_0_and_back(kind: Any, fused: bool | None, nesterov: bool) -> None:
    """A step without momentum is that of an optimizer that never had one; the buffer then holds that step alone."""
    ours, theirs = model_of(), model_of()
    optimizer = kind(ours.parameters(), lr=0.1, nesterov=nesterov, fused=fused)
    plain = kind(theirs.parameters(), lr=0.1, momentum=0.0, fused=fused)
    train(ours, optimizer, range(2))
    optimizer.param_groups[0]["momentum"] = 0.0
    for step in range(2, 4):
        theirs.load_state_dict(ours.state_dict())
        for model, stepped in ((ours, optimizer), (theirs, plain)):
            set_gradients(model.parameters(), step)
            stepped.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-7)
    optimizer.param_groups[0]["momentum"] = 0.9
    plain.param_groups[0]["momentum"] = 0.9
    train(ours, optimizer, range(4, 6))
    train(theirs, plain, range(4, 6))
    assert all(plain.state[p]["momentum_buffer"].any() for p in theirs.parameters())


@every_kind
def test_torch_compile_breaks_the_graph_once_and_takes_the_same_steps(make: Make) -> None:
    ours, theirs = model_of(), model_of()
    first, second = make(ours.parameters()), make(theirs.parameters())
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def stepped(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        first.step()
        return y * 2

    torch._dynamo.reset()
    compiled = torch.compile(stepped, backend=backend)
    for step in range(3):
        set_gradients(ours.parameters(), step)
        set_gradients(theirs.parameters(), step)
        compiled(torch.ones(2))
        second.step()
    assert len(graphs) <= 2
    assert bits(ours) == bits(theirs) and bits(first) == bits(second)
