"""Weights that are written from outside between steps: with masters, too, the next step goes on from what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends.bucket import Guard
from lightning_scale.optim.base import OptimizerBase

from .kinds import bits, set_gradients

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LAMB": (LAMB, {}),
    "LARS": (LARS, {"lr": 5.0, "trust_coefficient": 0.01}),
    "LARS-momentum": (LARS, {"trust_norm": "momentum"}),
    "LAMB8bit": (LAMB8bit, {}),
    "LARS8bit": (LARS8bit, {"lr": 5.0, "trust_coefficient": 0.01}),
    "LARS8bit-momentum": (LARS8bit, {"trust_norm": "momentum"}),
    "AdamW8bit": (AdamW8bit, {}),
    "SGD8bit": (SGD8bit, {}),
}
every_kind = pytest.mark.parametrize(("kind", "options"), KINDS.values(), ids=KINDS)
BACKENDS = {"reference": False, "cpu": None, "triton": True}
every_backend = pytest.mark.parametrize("fused", BACKENDS.values(), ids=BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
# In 8 bits and not; more than a block and a part of one; a memory format of its own.
SHAPES = ((70, 71), (33,), (9, 4, 3, 3))


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    found[2] = found[2].to(memory_format=torch.channels_last)
    return [nn.Parameter(t) for t in found]


def made(kind: Any, options: dict[str, Any], params: list[nn.Parameter], fused: bool | None, **more: Any) -> Any:
    return kind(params, **{"lr": 1e-2, "weight_decay": 0.1, "master_weights": True, "fused": fused, **options, **more})


def prune(p: Tensor) -> None:
    p.data[p.abs() < 0.5] = 0


def clamp(p: Tensor) -> None:
    p.data.clamp_(-0.25, 0.25)


def load(p: Tensor) -> None:
    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))


WRITES: dict[str, Callable[[Tensor], None]] = {"prune": prune, "clamp": clamp, "load": load}


@every_kind
@every_backend
@every_dtype
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_next_step_is_that_of_a_master_that_was_written_too(
    kind: Any, options: dict[str, Any], fused: bool | None, dtype: torch.dtype, write: Callable[[Tensor], None]
) -> None:
    """Of the same bits as a twin whose master the test has written, element by element, where the parameter was."""
    ours, theirs = parameters(dtype), parameters(dtype)
    first, second = made(kind, options, ours, fused), made(kind, options, theirs, fused)
    for step in range(4):
        for params, optimizer in ((ours, first), (theirs, second)):
            set_gradients(params, step)
            optimizer.step()
        if step != 1:
            continue
        for p, q in zip(ours, theirs, strict=True):
            before = p.detach().clone()
            with torch.no_grad():
                write(p)
                write(q)
            changed = p.detach() != before
            assert changed.any()
            master = second.state[q]["master"]
            master[changed] = q.detach().float()[changed]
    assert bits(ours) == bits(theirs)
    assert bits(first) == bits(second)


@every_kind
@every_backend
def test_masters_are_kept_where_nothing_was_written(kind: Any, options: dict[str, Any], fused: bool | None) -> None:
    """Rates far below a unit in the last place of the weights add up in the master; a step that took the weights would lose
    them."""
    params = [nn.Parameter(torch.full((70, 71), 1.0, dtype=torch.bfloat16))]
    factor = 1e-6 if kind in (LAMB, LAMB8bit, AdamW8bit, SGD8bit) or options.get("trust_norm") else 1e-3
    optimizer = made(kind, options, params, fused, lr=factor, weight_decay=0.0)
    for _ in range(4):
        params[0].grad = torch.ones_like(params[0])
        optimizer.step()
    moved = (1 - optimizer.state[params[0]]["master"]).double()
    assert params[0].detach().eq(1).all() and moved.min() > 2e-6
    assert np.ptp(moved.numpy()) < 1e-6


@every_backend
def test_a_skipped_step_leaves_what_was_written(fused: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(torch.bfloat16)
    optimizer = made(LAMB, {}, params, fused)
    set_gradients(params, 0)
    optimizer.step()
    for p in params:
        p.data.zero_()
    monkeypatch.setattr(OptimizerBase, "_decide", lambda *_: Guard(torch.tensor(False), None))
    set_gradients(params, 1)
    optimizer.step()
    assert all(p.detach().eq(0).all() for p in params)
    monkeypatch.undo()
    set_gradients(params, 2)
    optimizer.step()
    assert all(p.detach().abs().max() < 0.05 for p in params)


@every_backend
def test_the_trust_ratio_is_that_of_what_was_written(fused: bool | None) -> None:
    params = parameters(torch.bfloat16)
    optimizers = [made(LAMB, {}, params, fused), made(LARS, {}, params, fused)]
    for optimizer in optimizers:
        set_gradients(params, 0)
        optimizer.step()
    for optimizer in optimizers:
        params[0].data.fill_(0.5)
        set_gradients(params, 1)
        optimizer.step()
        norm = float(optimizer.layer_stats()["0.0"].weight_norm)
        assert abs(norm - 0.5 * (70 * 71) ** 0.5) < 1e-4
