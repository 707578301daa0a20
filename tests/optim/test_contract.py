"""What torch.optim promises about every optimizer, asked of every optimizer here."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from .kinds import (
    Make,
    bits,
    every_kind,
    every_layerwise_kind,
    every_precision,
    model_of,
    set_gradients,
    stats_of,
    through_a_file,
    train,
)


@every_kind
def test_groups_and_add_param_group(make: Make) -> None:
    model, alone = model_of(), model_of()
    optimizer = make([{"params": model[0].parameters(), "lr": 0.5}])
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["weight_decay"] == 0.1
    train(model[0], optimizer, range(2))
    untouched = bits(model[2])
    train(model[0], optimizer, range(2, 4))
    assert bits(model[2]) == untouched
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.25, "weight_decay": 0.0})
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert optimizer.param_groups[1]["lr"] == 0.25 and optimizer.param_groups[1]["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": [model[0].weight]})

    # A group that joins later starts at its own first step: as alone in an optimizer of its own.
    other = make([{"params": alone[2].parameters(), "lr": 0.25, "weight_decay": 0.0}])
    for step in range(3):
        for layers in (model[2], alone[2]):
            set_gradients(layers.parameters(), step)
        set_gradients(model[0].parameters(), step)
        optimizer.step()
        other.step()
    assert bits(model[2]) == bits(alone[2])


@every_kind
def test_named_parameters(make: Make) -> None:
    named, unnamed = model_of(), model_of()
    optimizer, plain = make(named.named_parameters()), make(unnamed.parameters())
    train(named, optimizer, range(3))
    train(unnamed, plain, range(3))
    assert bits(named) == bits(unnamed)
    names = [name for name, _ in named.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert not hasattr(optimizer, "layer_stats") or set(optimizer.layer_stats()) == set(names)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


@every_layerwise_kind
def test_named_parameters_in_groups(make: Make) -> None:
    model = model_of()
    optimizer = make([{"params": list(model[0].named_parameters(prefix="first"))}])
    optimizer.add_param_group({"params": list(model[2].named_parameters(prefix="second")), "weight_decay": 0.0})
    for layer in (model[0], model[2]):
        set_gradients(layer.parameters(), 0)
    optimizer.step()
    assert set(optimizer.layer_stats()) == {"first.weight", "first.bias", "second.weight", "second.bias"}


@every_kind
def test_closure(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    x = torch.ones(5, 4)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert calls == [True]
    expected = twin(x).square().sum()
    expected.backward()
    assert other.step() is None
    assert torch.equal(loss, expected)
    assert bits(model) == bits(twin)


@every_kind
def test_step_leaves_no_graph_on_the_weights(make: Make) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())
    assert not any(t.requires_grad for s in optimizer.state.values() for t in s.values())


@every_kind
def test_zero_grad(make: Make) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    set_gradients(model.parameters(), 0)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@every_kind
def test_step_hooks(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    start, seen = bits(model), []

    def before(hooked: Any, args: Any, kwargs: Any) -> None:
        seen.append(("before", hooked is optimizer, bits(model) == start))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(2.0)

    def after(hooked: Any, args: Any, kwargs: Any) -> None:
        seen.append(("after", hooked is optimizer, bits(model) == start))

    handle = optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    set_gradients(model.parameters(), 0)
    set_gradients(twin.parameters(), 0, scale=2.0)
    optimizer.step()
    other.step()
    assert seen == [("before", True, True), ("after", True, False)]
    assert bits(model) == bits(twin)
    handle.remove()
    optimizer.step()
    assert [name for name, *_ in seen] == ["before", "after", "after"]


@every_kind
def test_maximize_is_descent_on_the_negated_gradient(make: Make) -> None:
    up, down = model_of(), model_of()
    ascent, descent = make(up.parameters(), maximize=True), make(down.parameters())
    for step in range(3):
        set_gradients(up.parameters(), step)
        set_gradients(down.parameters(), step, scale=-1.0)
        ascent.step()
        descent.step()
    assert bits(up) == bits(down) and bits(ascent) == bits(descent)


@every_kind
@pytest.mark.parametrize("lr_dtype", [torch.float32, torch.float64])
def test_a_tensor_rate_is_the_same_as_a_number(make: Make, lr_dtype: torch.dtype) -> None:
    model, twin = model_of(), model_of()
    rate = torch.tensor(0.05, dtype=lr_dtype)
    optimizer, other = make(model.parameters(), lr=rate), make(twin.parameters(), lr=0.05)
    train(model, optimizer, range(2))
    train(twin, other, range(2))
    optimizer.param_groups[0]["lr"].fill_(0.5)
    other.param_groups[0]["lr"] = 0.5
    train(model, optimizer, range(2, 4))
    train(twin, other, range(2, 4))
    assert bits(model) == bits(twin) and bits(optimizer) == bits(other)
    restored = make(model.parameters(), lr=1.0)
    restored.load_state_dict(through_a_file(optimizer.state_dict()))
    assert float(restored.param_groups[0]["lr"]) == 0.5


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    # Cycles betas or momentum as well as the rate.
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=8),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
    ),
}


@every_kind
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers_of_torch(make: Make, scheduler: Any, tensor_lr: bool) -> None:
    """A step under a scheduler is the step of an optimizer to which its rate (and momentum) was given by hand."""
    model, twin = model_of(), model_of()
    optimizer = make(model.parameters(), lr=torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05)
    other = make(twin.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # torch 2.6's SequentialLR gives the epoch that its own schedulers warn of.
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)
        schedule = scheduler(optimizer)
        rates = []
        for step in range(5):
            group = optimizer.param_groups[0]
            rates.append(float(group["lr"]))
            other.param_groups[0].update({key: group[key] for key in ("betas", "momentum") if key in group})
            other.param_groups[0]["lr"] = rates[-1]
            train(model, optimizer, range(step, step + 1))
            train(twin, other, range(step, step + 1))
            schedule.step()
    assert len(set(rates)) > 1
    assert bits(model) == bits(twin)


@every_kind
@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.01}, {"maximize": True, "max_grad_norm": 0.01}])
@every_precision
def test_step_leaves_the_gradients_as_they_were(
    make: Make, dtype: torch.dtype, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    model = model_of(dtype)
    optimizer = make(model.parameters(), **options, **changes)
    for step in range(2):
        set_gradients(model.parameters(), step)
        held = [p.grad for p in model.parameters()]
        before = bits(held)
        optimizer.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))
        assert bits(held) == before


@every_kind
def test_amp_scaler(make: Make) -> None:
    """A GradScaler divides by its scale and skips overflows itself; what arrives is the same step."""
    model, twin = model_of(), model_of()
    optimizer, other = make(model.parameters()), make(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = torch.linspace(-1, 1, 20).reshape(5, 4)
    for step in range(4):
        optimizer.zero_grad()
        factor = float("inf") if step == 1 else 1.0
        scaler.scale(model(x).square().sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if step != 1:
            other.zero_grad()
            twin(x).square().sum().backward()
            other.step()
    assert scaler.get_scale() == 512.0
    assert bits(model) == bits(twin) and bits(optimizer) == bits(other)


@every_kind
@every_precision
def test_the_same_run_twice_gives_the_same_bits(make: Make, dtype: torch.dtype, options: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(67, 129), nn.Linear(129, 33)).to(dtype)
        optimizer = make(model.parameters(), max_grad_norm=1.0, **options)
        train(model, optimizer, range(3))
        runs.append((bits(model), bits(optimizer), {k: bits(tuple(v)) for k, v in stats_of(optimizer).items()}))
    assert runs[0] == runs[1]


@every_kind
def test_parameters_without_gradients_get_no_state(make: Make) -> None:
    model = model_of()
    model[0].weight.requires_grad_(False)
    optimizer = make(model.parameters())
    x = torch.ones(2, 4)
    model(x).square().sum().backward()
    before = bits(model[0].weight)
    optimizer.step()
    assert bits(model[0].weight) == before
    assert not optimizer.state.get(model[0].weight)
    assert not hasattr(optimizer, "layer_stats") or set(optimizer.layer_stats()) == {f"0.{i}" for i in range(1, 6)}


@every_layerwise_kind
def test_layer_stats_do_not_change_after_they_were_taken(make: Make) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    taken = optimizer.layer_stats()
    before = {name: bits(tuple(stats)) for name, stats in taken.items()}
    train(model, optimizer, range(1, 3))
    assert {name: bits(tuple(stats)) for name, stats in taken.items()} == before
    assert {name: bits(tuple(stats)) for name, stats in optimizer.layer_stats().items()} != before
