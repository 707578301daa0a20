"""One thread: these tensors are small, and several test processes may share the machine. And what tests of kernels
need."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from lightning_scale.optim.backends.cpu import launch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def one_rounding() -> Iterator[None]:
    """Of the interpreter's multiply-adds, as compiled kernels round them."""
    if find_spec("triton") is None or torch.cuda.is_available():
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, interpreter_builder

    from .interpreted_fma import create_fma, rounds_twice

    with pytest.MonkeyPatch.context() as patch:
        if rounds_twice(interpreter_builder):
            patch.setattr(InterpreterBuilder, "create_fma", create_fma)
        yield


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small tensors have several chunks, turns and groups."""
    monkeypatch.setattr(launch, "CHUNK", 1 << 10)
    monkeypatch.setattr(launch, "GROUP", 20_000)
    monkeypatch.setattr(launch, "TURN", 2)


@pytest.fixture
def exact_square_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's float32 square root on CPUs is MKL's, which is off in the last bit at every tenth number."""

    def sqrt(t: Tensor) -> Tensor:
        return torch.pow(t.double(), 0.5).to(t.dtype) if t.device.type == "cpu" else torch.sqrt(t)

    monkeypatch.setattr(Tensor, "sqrt", sqrt)
    monkeypatch.setattr(Tensor, "sqrt_", lambda t: t.copy_(sqrt(t)))
    monkeypatch.setattr(torch, "_foreach_sqrt", lambda tensors: [sqrt(t) for t in tensors])
    monkeypatch.setattr(torch, "_foreach_sqrt_", lambda tensors: [t.copy_(sqrt(t)) for t in tensors])
