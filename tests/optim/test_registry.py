"""The registry names every optimizer that users can import, and every backend has its algorithm."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_scale import optim
from lightning_scale.optim.backends.bucket import Backend
from lightning_scale.optim.registry import REGISTRY, Entry

from .equations import EQUATIONS

every_entry = pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY)


def test_it_holds_the_optimizers_that_are_exported() -> None:
    exported = {
        name
        for name in optim.__all__
        if isinstance(getattr(optim, name), type) and issubclass(getattr(optim, name), torch.optim.Optimizer)
    }
    assert set(REGISTRY) == exported
    assert all(getattr(optim, name) is entry.kind for name, entry in REGISTRY.items())


@every_entry
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_every_backend_has_the_algorithm(entry: Entry, backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    if Backend[backend.upper()] not in entry.kind._backends:
        pytest.skip("none that it says it has")
    module = import_module(f"lightning_scale.optim.backends.{backend}.{entry.algorithm}")
    coded = backend == "triton" and entry.eight_bit
    assert callable(getattr(module, f"{entry.algorithm}8bit" if coded else entry.algorithm))


@every_entry
def test_pages_name_it(entry: Entry) -> None:
    root = Path(__file__).parents[2]
    assert f".. autoclass:: {entry.name}\n" in (root / "docs/api/optim.rst").read_text()
    assert f"`{entry.name}" in (root / "docs/optimizers.md").read_text()


@every_entry
def test_a_step_keeps_the_moments_that_it_says(entry: Entry) -> None:
    for form, options in entry.every_form().items():
        p = nn.Parameter(torch.randn(64, 100))
        p.grad = torch.randn(64, 100)
        optimizer = entry.kind([p], **options)  # type: ignore[call-arg]
        optimizer.step()
        kept = {key for key in ("exp_avg", "exp_avg_sq", "momentum_buffer") if key in optimizer.state[p]}
        remembers = any("m" in one.reads for one in entry.passes_of(form))
        assert kept == (set(entry.moments) if remembers else set()), form
        assert all((optimizer.state[p][key].dtype == torch.uint8) == entry.eight_bit for key in kept)


def test_every_optimizer_has_its_equations() -> None:
    assert EQUATIONS.keys() == REGISTRY.keys()


@every_entry
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [None, False])
def test_every_form_takes_the_equations_step(entry: Entry, dtype: torch.dtype, fused: bool | None) -> None:
    """On small layers, whose moments are not in 8 bits: within rounding of the largest number that was there."""
    tolerance = 64 * torch.finfo(dtype).eps
    for form, options in entry.every_form().items():
        generator = torch.Generator().manual_seed(0)
        shapes = ((5, 7), (4, 3, 2, 2), (7,), (), (1, 1))
        params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        optimizer = entry.kind(params, **{"weight_decay": 0.1, "lr": 0.05, **options}, fused=fused)  # type: ignore[call-arg]
        weights = [p.detach().double().numpy().copy() for p in params]
        states: list[dict[str, Any]] = [{} for _ in params]
        group = optimizer.param_groups[0]
        if "decay_1d" in group:
            group["decay_1d"] = False  # the default's rule, though the decay is written here
        for _ in range(5):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=generator).to(dtype)
                weights[i] = EQUATIONS[entry.name](weights[i], p.grad.double().numpy(), states[i], group)
            optimizer.step()
        for p, w in zip(params, weights, strict=True):
            off = np.abs(p.detach().double().numpy() - w).max()
            assert off <= tolerance * max(1.0, np.abs(w).max()), (form, tuple(p.shape))
