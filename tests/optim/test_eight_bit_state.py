"""8-bit state in checkpoints: dtypes, layouts, resets, and states that belong to another optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.state.moments import new_moment
from lightning_scale.optim.state.reset import reset_moments

from .kinds import bits, set_gradients, through_a_file
from .test_eight_bit_layouts import partition

KINDS: list[tuple[Any, dict[str, int]]] = [
    (LAMB8bit, {"exp_avg": 127, "exp_avg_sq": 0}),
    (LARS8bit, {"momentum_buffer": 127}),
    (AdamW8bit, {"exp_avg": 127, "exp_avg_sq": 0}),
    (SGD8bit, {"momentum_buffer": 127}),
]
every_kind = pytest.mark.parametrize(("kind", "moments"), KINDS)


def trained(kind: Any, dtype: torch.dtype, channels_last: bool = False, **options: Any) -> tuple[list[Any], Any]:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in [(40, 11, 5, 3), (5000,), (9, 9)]]
    if channels_last:
        parameters[0].data = parameters[0].data.contiguous(memory_format=torch.channels_last)
    optimizer = kind(parameters, lr=0.1, **options)
    for step in range(3):
        set_gradients(parameters, step)
        optimizer.step()
    return parameters, optimizer


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("master", [False, True])
def test_codes_and_scales_keep_their_dtypes(
    kind: Any, moments: dict[str, int], dtype: torch.dtype, master: bool
) -> None:
    parameters, optimizer = trained(kind, dtype, channels_last=True, master_weights=master)
    fresh = kind(parameters, lr=0.1, master_weights=master)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert bits(fresh) == bits(optimizer)
    for p in parameters:
        state = fresh.state[p]
        assert ("master" in state) is (master and dtype != torch.float32)
        for key in moments:
            assert state[key].dtype == (torch.uint8 if p.numel() >= 4096 else torch.float32)
            assert state[key].shape == p.shape and state[key].is_contiguous()
            if p.numel() >= 4096:
                assert state[f"{key}_absmax"].dtype == torch.float32
                assert state[f"{key}_absmax"].shape == (-(-p.numel() // 256),)
    twins, other = copy.deepcopy((parameters, optimizer))
    for these, o in ((parameters, fresh), (twins, other)):
        set_gradients(these, 9)
        o.step()
    assert bits(parameters) == bits(twins) and bits(fresh) == bits(other)


@every_kind
def test_float64_parameters_keep_float64_moments(kind: Any, moments: dict[str, int]) -> None:
    parameters, optimizer = trained(kind, torch.float64)
    for p in parameters:
        assert {optimizer.state[p][key].dtype for key in moments} == {torch.float64}


@every_kind
def test_the_default_dtype_has_no_say(kind: Any, moments: dict[str, int]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        parameter = nn.Parameter(torch.ones(64, 64, dtype=torch.float32))
        parameter.grad = torch.ones(64, 64, dtype=torch.float32)
        optimizer = kind([parameter], lr=0.1)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in optimizer.state[parameter].values()} == {torch.uint8, torch.float32}


@every_kind
def test_a_state_in_another_memory_format_is_laid_out_anew(kind: Any, moments: dict[str, int]) -> None:
    parameters, optimizer = trained(kind, torch.float32)
    twins, other = copy.deepcopy((parameters, optimizer))
    for key in moments:
        state = optimizer.state[parameters[0]]
        state[key] = state[key].contiguous(memory_format=torch.channels_last)
        assert not state[key].is_contiguous()
    for these, o in ((parameters, optimizer), (twins, other)):
        set_gradients(these, 9)
        o.step()
    assert bits(parameters) == bits(twins) and bits(optimizer) == bits(other)


@every_kind
def test_reset_moments_gives_the_codes_of_zero(kind: Any, moments: dict[str, int]) -> None:
    parameters, optimizer = trained(kind, torch.float32)
    optimizer.reset_moments()
    for p in parameters[:2]:
        state = optimizer.state[p]
        for key, zero in moments.items():
            assert state[key].eq(zero).all() and state[f"{key}_absmax"].eq(0).all()


def test_reset_moments_of_a_mixed_partition() -> None:
    layout = partition([], 0, 1)
    weight = torch.zeros(layout.tensor_numels[0])
    optimizer = SGD8bit([nn.Parameter(weight)])
    state = new_moment("momentum_buffer", weight, layout.layers, layout.runs)
    assert set(state) == {"momentum_buffer", "momentum_buffer_absmax", "momentum_buffer_small"}
    before = bits(state)
    for value in state.values():
        value.fill_(3)
    optimizer.state[optimizer.param_groups[0]["params"][0]] = state
    reset_moments(optimizer)
    assert bits(state) == before


@pytest.mark.parametrize(("gave", "takes"), [(AdamW8bit, LAMB), (LAMB8bit, LAMB)])
def test_another_kinds_state_is_refused(gave: Any, takes: Any) -> None:
    """Before anything is loaded."""
    parameter = nn.Parameter(torch.ones(64, 64))
    parameter.grad = torch.ones(64, 64)
    first, other = gave([("weight", parameter)], lr=0.1), takes([("weight", parameter)], lr=0.1)
    first.step()
    other.step()
    before = bits(other)
    with pytest.raises(
        ValueError, match=rf"exp_avg of a parameter of shape \(64, 64\) is .* and {takes.__name__} keeps"
    ):
        other.load_state_dict(first.state_dict())
    assert bits(other) == before


def test_another_models_state_is_refused() -> None:
    ours, theirs = (nn.Parameter(torch.ones(*shape)) for shape in ((6, 4), (4, 6)))
    for p in (ours, theirs):
        p.grad = torch.ones_like(p)
    first, other = LAMB([theirs], lr=0.1), LAMB([ours], lr=0.1)
    first.step()
    with pytest.raises(ValueError, match=r"float32 of shape \(4, 6\) in this state_dict.*float32 of shape \(6, 4\)"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(("kind", "moments"), [KINDS[0], KINDS[2]])
def test_a_skipped_step_writes_no_code(kind: Any, moments: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked on the device, also the first step, whose moments are all zero."""
    from lightning_scale.optim.backends.bucket import Guard
    from lightning_scale.optim.base import OptimizerBase

    nonfinite = Guard(torch.tensor(False), torch.tensor(torch.nan))
    parameters, optimizer = trained(kind, torch.bfloat16, channels_last=True, master_weights=True)
    before = bits(parameters), bits(optimizer)
    monkeypatch.setattr(OptimizerBase, "_decide", lambda *_: nonfinite)
    set_gradients(parameters, 5)
    parameters[1].grad[7] = torch.inf
    optimizer.step()
    assert (bits(parameters), bits(optimizer)) == before
