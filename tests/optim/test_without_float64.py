"""Devices that have no float64 (Apple's MPS) take the reference's steps: shown on a CPU that refuses it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_scale import optim
from lightning_scale.optim.backends import device as constants
from lightning_scale.optim.backends.device import bias_correction, widest
from lightning_scale.optim.quantization import SIGNED, UNSIGNED

KINDS: dict[str, dict[str, Any]] = {
    "LAMB": {"max_grad_norm": 1.0},
    "LARS": {"max_grad_norm": 1.0, "trust_norm": "momentum"},
    "LAMB8bit": {"max_grad_norm": 1.0},
    "LARS8bit": {},
    "AdamW8bit": {"max_grad_norm": 1.0},
    "SGD8bit": {},
}


class Refuses(TorchDispatchMode):
    """float64 on any device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, result)):
            if isinstance(t, Tensor) and t.dtype == torch.float64:
                raise TypeError(f"{func}: this device has no float64")
        return result


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "WITHOUT_FLOAT64", ("cpu",))
    for code in (SIGNED, UNSIGNED):
        code.thresholds()  # made on the host, once, and brought to the device


def trained(
    name: str, mode: Any, steps: int = 3, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Any]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((70, 70), (7, 3), (5,))]
    optimizer = getattr(optim, name)(params, lr=0.05, fused=False, **KINDS[name])
    for _ in range(steps):
        for p in params:
            p.grad = (scale * torch.randn(p.shape, generator=generator)).to(dtype)
        with mode:
            optimizer.step()
            if hasattr(optimizer, "layer_stats"):
                optimizer.layer_stats()
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("name", KINDS)
def test_the_same_steps(name: str, without_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert widest(torch.device("cpu")) == torch.float32
    ours, _ = trained(name, Refuses())
    monkeypatch.undo()
    assert widest(torch.device("cpu")) == torch.float64
    theirs, _ = trained(name, torch.no_grad())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 if "8bit" not in name else 2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_large_gradients_are_finite_and_not_finite_ones_are_skipped(
    name: str, dtype: torch.dtype, without_float64: None
) -> None:
    """The squares of 1e25 are beyond float32."""
    _, optimizer = trained(name, Refuses(), steps=1, scale=1e25, dtype=dtype)
    assert int(optimizer.skipped_steps) == 0
    _, optimizer = trained(name, Refuses(), steps=1, scale=float("inf"), dtype=dtype)
    assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_bias_corrections(beta: float, without_float64: None) -> None:
    """1 - β^t in float32 itself would lose four digits at first."""
    steps = torch.tensor([1.0, 2.0, 3.0, 100.0, 1e5, 1e7])
    expected = [1 - beta**t for t in steps.tolist()]
    torch.testing.assert_close(
        bias_correction(steps, beta).double(), torch.tensor(expected).double(), rtol=3e-7, atol=0
    )
