"""State that is saved, loaded, copied and pickled goes on with the same bits."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from lightning_scale.optim import LAMB, LARS

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
@every_precision
def test_state_dict_round_trip_bit_for_bit(make: Make, dtype: torch.dtype, options: dict[str, Any]) -> None:
    whole, interrupted, resumed = model_of(dtype), model_of(dtype), model_of(dtype, seed=1)
    first = make(whole.parameters(), **options)
    train(whole, first, range(6))

    second = make(interrupted.parameters(), **options)
    train(interrupted, second, range(3))
    saved = through_a_file({"model": interrupted.state_dict(), "optimizer": second.state_dict()})

    third = make(resumed.parameters(), **{**options, "lr": 0.7, "weight_decay": 0.7})
    train(resumed, third, range(2))
    resumed.load_state_dict(saved["model"])
    third.load_state_dict(saved["optimizer"])
    assert bits(third) == bits(second)
    assert bits(third.state_dict()) == bits(second.state_dict())
    assert bits(third) == [[bits(saved["optimizer"]["state"].get(index, {})) for index in range(6)]]
    train(resumed, third, range(3, 6))
    assert bits(resumed) == bits(whole)
    assert bits(third) == bits(first)


@pytest.mark.parametrize(("kind", "moments"), [(LAMB, {"exp_avg", "exp_avg_sq"}), (LARS, {"momentum_buffer"})])
@pytest.mark.parametrize("master", [False, True])
def test_state_of_bfloat16_parameters_is_float32_after_a_reload(kind: Any, moments: set[str], master: bool) -> None:
    model = model_of(torch.bfloat16)
    optimizer = kind(model.parameters(), lr=0.1, master_weights=master)
    train(model, optimizer, range(2))
    fresh = kind(model.parameters(), lr=0.1, master_weights=master)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    for parameter in model.parameters():
        state = fresh.state[parameter]
        assert moments <= set(state) and ("master" in state) is master
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert any(not torch.equal(v, v.to(torch.bfloat16).float()) for k, v in state.items() if k in moments)


@every_kind
def test_a_state_dict_loads_into_an_optimizer_that_has_not_stepped(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer = make(model.parameters())
    fresh = make(twin.parameters(), lr=9.0)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert fresh.param_groups[0]["lr"] == 0.05
    train(model, optimizer, range(2))
    train(twin, fresh, range(2))
    assert bits(model) == bits(twin)


@every_kind
def test_state_is_restored_to_the_right_parameters_when_some_never_had_gradients(make: Make) -> None:
    model, twin = model_of(), model_of()
    optimizer, fresh = make(model.parameters()), make(twin.parameters())
    set_gradients(model.parameters(), 0)
    model[0].weight.grad = None
    optimizer.step()
    twin.load_state_dict(model.state_dict())
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert bits(optimizer) == bits(fresh)
    train(model, optimizer, range(1, 3))
    train(twin, fresh, range(1, 3))
    assert bits(model) == bits(twin) and bits(optimizer) == bits(fresh)


@every_kind
def test_a_state_dict_of_other_groups_is_refused(make: Make) -> None:
    optimizer = make(model_of().parameters())
    with pytest.raises(ValueError, match="group"):
        optimizer.load_state_dict(make(model_of()[0].parameters()).state_dict())


@every_kind
@every_precision
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_model_and_optimizer_go_on_alike(
    make: Make, dtype: torch.dtype, options: dict[str, Any], how: str
) -> None:
    model = model_of(dtype)
    optimizer = make(model.named_parameters(), **options)
    train(model, optimizer, range(3))
    together = (model, optimizer)
    copied_model, copied = copy.deepcopy(together) if how == "deepcopy" else pickle.loads(pickle.dumps(together))
    assert copied.param_groups[0]["params"][0] is next(copied_model.parameters())
    assert bits(copied) == bits(optimizer) and bits(copied_model) == bits(model)
    assert bits(stats_of(copied)) == bits(stats_of(optimizer))
    untouched = bits(model)
    train(copied_model, copied, range(3, 5))
    assert bits(model) == untouched
    train(model, optimizer, range(3, 5))
    assert bits(copied_model) == bits(model) and bits(copied) == bits(optimizer)
    assert set(stats_of(copied)) == set(stats_of(optimizer))
    # Skipping a step is part of what was copied.
    set_gradients(copied_model.parameters(), 9, scale=float("inf"))
    copied.step()
    assert (int(copied.skipped_steps), int(optimizer.skipped_steps)) == (1, 0)


@every_kind
@pytest.mark.parametrize("in_place", [False, True])
def test_a_load_state_dict_pre_hook_may_edit(make: Make, in_place: bool) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(2))
    saved = through_a_file(optimizer.state_dict())
    calls = []

    def edit(_: Any, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        calls.append("pre")
        edited = state_dict if in_place else copy.deepcopy(state_dict)
        edited["param_groups"][0]["lr"] = 0.125
        for state in edited["state"].values():
            for key in state.keys() & {"exp_avg", "momentum_buffer"}:
                state[key].fill_(3.0)
        return None if in_place else edited

    optimizer.register_load_state_dict_pre_hook(edit)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("post"))
    optimizer.load_state_dict(saved)
    assert calls == ["pre", "post"]
    assert optimizer.param_groups[0]["lr"] == 0.125
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert all(state[key].eq(3.0).all() for key in state.keys() & {"exp_avg", "momentum_buffer"})


@every_kind
def test_state_dict_hooks(make: Make) -> None:
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, state_dict: {**state_dict, "note": 1})
    assert optimizer.state_dict()["note"] == 1 and calls == ["pre"]


@every_kind
def test_skipped_steps_are_counted_on_after_a_reload(make: Make) -> None:
    model = model_of()
    optimizer, fresh = make(model.parameters()), make(model.parameters())
    set_gradients(model.parameters(), 0, scale=float("nan"))
    optimizer.step()
    optimizer.step()
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    fresh.step()
    assert (int(optimizer.skipped_steps), int(fresh.skipped_steps)) == (2, 3)


@every_kind
def test_steps_do_not_write_into_the_state_dict_that_was_loaded(make: Make) -> None:
    """One checkpoint kept in memory can be loaded twice."""
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    before = bits(saved)
    optimizer.load_state_dict(saved)
    train(model, optimizer, range(2, 4))
    set_gradients(model.parameters(), 4, scale=float("nan"))
    optimizer.step()
    assert bits(saved) == before


@every_layerwise_kind
@pytest.mark.parametrize("exclude_1d", [True, False])
def test_a_group_added_to_a_copy_follows_its_exclude_1d(make: Make, exclude_1d: bool) -> None:
    model, added = model_of(), torch.nn.Parameter(torch.ones(3))
    optimizer = copy.deepcopy(make(model.parameters(), exclude_1d=exclude_1d))
    optimizer.add_param_group({"params": [added]})
    added.grad = torch.ones(3)
    optimizer.step()
    assert (float(stats_of(optimizer)["1.0"].trust_ratio) == 1.0) is exclude_1d
