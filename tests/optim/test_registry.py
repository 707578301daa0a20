"""The registry names every optimizer that users can import, and every backend has its algorithm."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_scale import optim
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.registry import REGISTRY, Entry

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
    if backend != "reference" and entry.kind._backend_of is not OptimizerBase._backend_of:
        pytest.skip("its class says that it has no kernels")
    if backend == "triton":
        pytest.importorskip("triton")
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
