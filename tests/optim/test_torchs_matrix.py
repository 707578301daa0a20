"""What PyTorch asks of each of its own optimizers (its test/test_optim.py), asked of all of these, beside `test_contract`.

Its matrix is options × ways to compute × schedulers. Not asked: sparse and complex parameters (refused, `test_bad_arguments`),
``foreach``, ``capturable`` and ``differentiable``, which these optimizers do not have.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from tests.optim.kinds import Make, bits, every_kind, model_of, train

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.9},
    "uphill": {"maximize": True},
    "a tensor's rate": {"lr": torch.tensor(0.05)},
    "reference": {"fused": False},
    "clipped": {"max_grad_norm": 0.5},
}
SCHEDULERS: dict[str, list[Callable[[Optimizer], Any]]] = {
    "none": [],
    "steps": [lambda o: lr_scheduler.StepLR(o, gamma=0.9, step_size=10)],
    "two": [
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.99),
        lambda o: lr_scheduler.LinearLR(o, 0.4, total_iters=4),
    ],
    "cosine": [lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=60)],
    "plateau": [lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2)],
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def _problem() -> tuple[nn.Sequential, Callable[[], Tensor]]:
    model = model_of()
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return model, lambda: (model(inputs) - 1).square().mean()


@every_kind
@every_option
@pytest.mark.parametrize("schedulers", SCHEDULERS.values(), ids=SCHEDULERS)
def test_goes_in_the_right_direction(make: Make, options: dict[str, Any], schedulers: list[Any]) -> None:
    model, loss_of = _problem()
    sign = -1.0 if options.get("maximize") else 1.0
    optimizer = make(model.parameters(), **{"lr": 0.02, "weight_decay": 0.0, **copy.deepcopy(options)})
    made = [scheduler(optimizer) for scheduler in schedulers]
    first = float(loss_of())
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        for scheduler in made:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(float(loss))
            else:
                scheduler.step()
    if options.get("weight_decay", 0.0) < 0.5:  # a large decay has its own way
        assert sign * float(loss_of()) < sign * first


@every_kind
@every_option
def test_is_the_same_when_it_is_run_again(make: Make, options: dict[str, Any]) -> None:
    found = []
    for _ in range(2):
        model = model_of()
        optimizer = make(model.parameters(), **copy.deepcopy(options))
        train(model, optimizer, range(4))
        found.append((bits(model), bits(optimizer)))
    assert found[0] == found[1]


@every_kind
@every_option
def test_goes_on_from_a_file_that_holds_no_code(make: Make, options: dict[str, Any]) -> None:
    first, second = model_of(), model_of(seed=1)
    optimizer = make(first.parameters(), **copy.deepcopy(options))
    train(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second.load_state_dict(loaded["model"])
    other = make(second.parameters(), **copy.deepcopy(options))
    other.load_state_dict(loaded["optimizer"])
    options_of = [sorted(map(str, own.state_dict()["param_groups"][0].items())) for own in (optimizer, other)]
    assert options_of[0] == options_of[1]
    for model, own in ((first, optimizer), (second, other)):
        train(model, own, range(3, 6))
    assert bits(first) == bits(second) and bits(optimizer) == bits(other)


@every_kind
@pytest.mark.parametrize("named", [(True, False), (False, True), (True, True)], ids=["to unnamed", "to named", "named"])
def test_names_come_and_go(make: Make, named: tuple[bool, bool]) -> None:
    models = [model_of(), model_of()]
    made = [make(m.named_parameters() if of else m.parameters()) for m, of in zip(models, named, strict=True)]
    train(models[0], made[0], range(2))
    models[1].load_state_dict(models[0].state_dict())
    made[1].load_state_dict(made[0].state_dict())
    for model, optimizer in zip(models, made, strict=True):
        train(model, optimizer, range(2, 4))
    assert bits(models[0]) == bits(models[1])


@every_kind
def test_a_deep_copy_has_all_public_attributes(make: Make) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    copied = copy.deepcopy(optimizer)
    assert set(vars(copied)) >= public
    before = bits(optimizer)
    optimizer.state.clear()
    assert bits(copied) == before


@every_kind
def test_prints_its_groups(make: Make) -> None:
    model = model_of()
    half = list(model.parameters())
    optimizer = make([{"params": half[:2], "lr": 0.125}, {"params": half[2:]}])
    words = repr(optimizer)
    assert type(optimizer).__name__ in words and "Parameter Group 1" in words and "lr: 0.125" in words


@every_kind
def test_a_groups_decay_pulls_weights_to_zero(make: Make) -> None:
    """PyTorch's test_param_groups_weight_decay: two matrices, of which one decays."""
    weight = nn.Parameter(torch.full((4, 4), 2.0))
    other = nn.Parameter(torch.full((4, 4), 2.0))
    groups = [{"params": [weight], "weight_decay": 0.5}, {"params": [other], "weight_decay": 0.0}]
    optimizer = make(groups, lr=0.01, weight_decay=0.1)
    for _ in range(20):
        for p in (weight, other):
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
    # (Where a ratio takes the length out of a step, both go down alike.)
    assert weight.norm() <= other.norm() and float(weight.norm()) < 8.0


@every_kind
def test_gradients_that_are_zero_leave_weights_without_decay(make: Make) -> None:
    model = model_of()
    before = bits(model)
    optimizer = make(model.parameters(), weight_decay=0.0)
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert bits(model) == before
