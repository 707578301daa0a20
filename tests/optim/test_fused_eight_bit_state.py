"""State of the 8-bit optimizers that is loaded, moved or exchanged between two steps of their Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_scale.optim import AdamW8bit, LAMB8bit

from .fused_eight_bit_pairs import (
    SHAPES,
    every_plain_kind,
    parameters,
    same,
    set_gradients,
)
from .fused_kernels import every_device
from .kinds import bits

pytest.importorskip("triton")


pytestmark = pytest.mark.usefixtures("exact_square_roots")


@every_device
@every_plain_kind
def test_states_go_from_one_way_to_the_other(make: Callable[..., Any], device: str) -> None:
    """And back: whichever took the first steps, the next are the same."""
    results = []
    for ways in ((True, True, True), (False, True, False), (True, False, True)):
        params = parameters(torch.bfloat16, device, SHAPES[:5])
        state = None
        for step, fused in enumerate(ways):
            optimizer = make(params, fused=fused, master_weights=True)
            if state is not None:
                optimizer.load_state_dict(state)
            set_gradients(params, step)
            optimizer.step()
            state = optimizer.state_dict()
        results.append((bits([p.detach() for p in params]), bits(state["state"])))  # type: ignore[index]
    assert results[0] == results[1] == results[2]


@every_device
def test_moved_parameters_and_state_are_noticed(device: str) -> None:
    shapes = SHAPES[2:5]
    a, b = parameters(device=device, shapes=shapes), parameters(device=device, shapes=shapes)
    ours, theirs = LAMB8bit(a, fused=True), LAMB8bit(b, fused=False)
    for step in range(4):
        if step == 1:
            a[0].data = a[0].data.clone()
        if step == 2:
            ours.load_state_dict(ours.state_dict())
        if step == 3:
            ours.state[a[0]]["exp_avg"] = ours.state[a[0]]["exp_avg"].clone()
            theirs.param_groups[0]["lr"] = ours.param_groups[0]["lr"] = 0.02
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
def test_a_wrong_state_is_refused(device: str) -> None:
    params = parameters(device=device, shapes=[(64, 64)])
    optimizer = AdamW8bit(params, fused=True)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.state[params[0]]["exp_avg"] = optimizer.state[params[0]]["exp_avg"].float()
    with pytest.raises(
        ValueError, match=r"exp_avg of '0\.0' is of dtype torch\.float32, and this optimizer keeps it as"
    ):
        optimizer.step()


@every_device
def test_a_state_in_another_memory_format_is_laid_out_anew(device: str) -> None:
    a, b = parameters(device=device, shapes=[(64, 65)]), parameters(device=device, shapes=[(64, 65)])
    ours, theirs = AdamW8bit(a, fused=True), AdamW8bit(b, fused=False)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        codes = ours.state[a[0]]["exp_avg"]
        ours.state[a[0]]["exp_avg"] = codes.t().contiguous().t()
    same(ours, theirs, a, b)
