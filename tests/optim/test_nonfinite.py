"""A NaN or Inf gradient anywhere: nothing moves, the step is counted, and the next step does not know of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_scale.optim.backends.bucket import Guard
from lightning_scale.optim.backends.norms import guard
from lightning_scale.optim.base import OptimizerBase

from .kinds import Make, bits, every_kind, model_of, set_gradients, train

BAD = [float("nan"), float("inf"), float("-inf")]
PRECISIONS = [
    (torch.float32, {}),
    (torch.float64, {}),
    (torch.bfloat16, {}),
    (torch.bfloat16, {"master_weights": True}),
]


@pytest.fixture(params=[True, False], ids=["looking", "without looking"])
def looking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the optimizer looks at the test's answer; on a GPU the kernels mask instead, and so they do here."""

    def decide(optimizer: Any, gathered: list[Any]) -> Guard:
        values = [(g.layout, g.grads) for g in gathered]
        result = guard(values, test_finite=optimizer.skip_nonfinite, max_grad_norm=optimizer.max_grad_norm)
        if result.finite is not None:
            optimizer.skipped_steps += ~result.finite
        return result

    if not request.param:
        monkeypatch.setattr(OptimizerBase, "_decide", decide)


def two_groups(make: Make, model: Any, **options: Any) -> Any:
    return make(
        [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[2].parameters()]}], **options
    )


@every_kind
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", [0, 1, 2, 5])
@pytest.mark.parametrize(("dtype", "options"), PRECISIONS)
def test_a_step_with_a_nonfinite_gradient_changes_nothing(
    looking: None, make: Make, dtype: torch.dtype, options: dict[str, Any], where: int, bad: float
) -> None:
    """`where` counts parameters over both groups: a weight or a bias of the first, or of the second."""
    model, twin = model_of(dtype), model_of(dtype)
    optimizer, other = two_groups(make, model, **options), two_groups(make, twin, **options)
    train(model, optimizer, range(2))
    train(twin, other, range(2))
    before = bits(model), bits(optimizer)
    set_gradients(model.parameters(), 7)
    list(model.parameters())[where].grad.view(-1)[-1] = bad  # type: ignore[union-attr]
    optimizer.step()
    assert (bits(model), bits(optimizer)) == before
    skipped = optimizer.skipped_steps
    assert skipped.dtype == torch.int64 and skipped.ndim == 0 and int(skipped) == 1

    train(model, optimizer, range(2, 4))
    train(twin, other, range(2, 4))
    assert bits(model) == bits(twin) and bits(optimizer) == bits(other)
    assert int(optimizer.skipped_steps) == 1 and int(other.skipped_steps) == 0


@every_kind
@pytest.mark.parametrize(("dtype", "options"), PRECISIONS)
@pytest.mark.parametrize("bad", BAD)
def test_a_skipped_first_step_leaves_a_fresh_start(
    looking: None, make: Make, dtype: torch.dtype, options: dict[str, Any], bad: float
) -> None:
    model, twin = model_of(dtype), model_of(dtype)
    options = {**options, "max_grad_norm": 1.0}
    optimizer, other = two_groups(make, model, **options), two_groups(make, twin, **options)
    start = bits(model)
    set_gradients(model.parameters(), 7)
    model[2].bias.grad[0] = bad  # type: ignore[index]
    for _ in range(3):
        optimizer.step()
    assert bits(model) == start and int(optimizer.skipped_steps) == 3
    train(model, optimizer, range(3))
    train(twin, other, range(3))
    assert bits(model) == bits(twin) and bits(optimizer) == bits(other)


@every_kind
def test_skip_nonfinite_false_lets_it_through(looking: None, make: Make) -> None:
    model = model_of()
    optimizer = two_groups(make, model, skip_nonfinite=False)
    set_gradients(model.parameters(), 0)
    model[0].weight.grad[0, 0] = float("nan")  # type: ignore[index]
    optimizer.step()
    assert torch.isnan(model[0].weight).any()
    assert torch.isfinite(model[2].weight).all()
    assert int(optimizer.skipped_steps) == 0


@every_kind
def test_finite_steps_are_the_same_with_and_without_the_test(looking: None, make: Make) -> None:
    model, twin = model_of(), model_of()
    train(model, two_groups(make, model), range(4))
    train(twin, two_groups(make, twin, skip_nonfinite=False), range(4))
    assert bits(model) == bits(twin)


@every_kind
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_gradients_whose_squares_overflow_are_not_counted_as_nonfinite(make: Make, max_grad_norm: float | None) -> None:
    """1e18 squared is 1e36; nine of them stay below float32's 3e38."""
    model = model_of()
    optimizer = make(model.parameters(), max_grad_norm=max_grad_norm)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e18)
    optimizer.step()
    assert int(optimizer.skipped_steps) == 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


@every_kind
def test_a_nonfinite_gradient_stays_in_place(make: Make) -> None:
    """What a user wants to look at after a skipped step is still there."""
    model = model_of()
    optimizer = make(model.parameters(), max_grad_norm=1.0)
    set_gradients(model.parameters(), 0)
    model[0].weight.grad[0, 0] = float("inf")  # type: ignore[index]
    before = bits([p.grad for p in model.parameters()])
    optimizer.step()
    assert bits([p.grad for p in model.parameters()]) == before


@every_kind
@pytest.mark.parametrize("options", [{}, {"eps": 0.0, "weight_decay": 0.0}])
def test_a_skipped_first_step_needs_no_eps(looking: None, make: Make, options: dict[str, Any]) -> None:
    """Where a step is masked, m/√v is 0/0 before the first gradient, and must not reach the weights."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    known = make([parameter]).defaults  # SGD divides by nothing
    optimizer = make([parameter], **{key: value for key, value in options.items() if key in known})
    parameter.grad = torch.full((2, 2), float("nan"))
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2, 2))
    assert not any(value.isnan().any() for value in optimizer.state[parameter].values())


@every_kind
@pytest.mark.parametrize("gradient", [1.0, -1.0])
def test_a_skipped_step_keeps_the_sign_of_zero(looking: None, make: Make, gradient: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make([parameter])
    parameter.grad = torch.full((2, 2), gradient)
    optimizer.step()
    with torch.no_grad():
        parameter.copy_(torch.tensor([[0.0, -0.0], [1.0, -0.0]]))
        for key in optimizer.state[parameter].keys() & {"exp_avg", "momentum_buffer"}:
            optimizer.state[parameter][key][0].copy_(torch.tensor([0.0, -0.0]))
    before = bits(parameter), bits(optimizer)
    parameter.grad = torch.full((2, 2), float("nan"))
    optimizer.step()
    assert (bits(parameter), bits(optimizer)) == before


@every_kind
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_nonfinite_gradient_of_any_dtype_stops_all(looking: None, make: Make, where: int) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    parameters = [torch.nn.Parameter(torch.ones(3, 2, dtype=dtype)) for dtype in dtypes]
    optimizer = make(parameters)
    set_gradients(parameters, 0)
    optimizer.step()
    before = bits(parameters), bits(optimizer)
    set_gradients(parameters, 1)
    parameters[where].grad[1, 1] = float("nan")  # type: ignore[index]
    optimizer.step()
    assert (bits(parameters), bits(optimizer)) == before
    assert int(optimizer.skipped_steps) == 1
