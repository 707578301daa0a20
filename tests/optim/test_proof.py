"""Triton kernels that nobody asked for are used only where they take the plain step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit, proof
from lightning_scale.optim.kernels import choice
from lightning_scale.optim.kernels.way import Way

pytest.importorskip("triton")

from lightning_scale.optim.kernels.fused import lamb as fused_lamb


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_known", {})


def parameter(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    p = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype))
    p.grad = torch.ones_like(p)
    return p


@pytest.mark.parametrize(
    ("kind", "options", "dtype"),
    [
        (LAMB, {}, torch.float32),
        (LAMB, {"max_grad_norm": 1.0, "master_weights": True}, torch.bfloat16),
        (LARS, {"nesterov": True, "weight_decay": 0.1}, torch.float32),
        (LARS, {"trust_norm": "momentum"}, torch.float16),
        (LAMB8bit, {}, torch.float32),
        (LARS8bit, {"master_weights": True}, torch.bfloat16),
        (AdamW8bit, {}, torch.float32),
        (SGD8bit, {"nesterov": True}, torch.float16),
    ],
)
def test_right_kernels_are_found_right(
    kind: Any, options: dict[str, Any], dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    class Mine(kind):  # type: ignore[misc]
        def __init__(self, module: nn.Parameter) -> None:
            super().__init__([module], lr=0.1, **options)

    p = parameter(dtype)
    state = torch.get_rng_state()
    assert proof.triton_is_right(Mine(p), p)
    assert torch.equal(torch.get_rng_state(), state)
    assert not [w for w in recwarn if "plain torch operations" in str(w.message)]


def test_a_wrong_step_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_lamb.bounds
    monkeypatch.setattr(fused_lamb, "bounds", lambda trust: (*right(trust)[:3], 0.5))
    p = parameter()
    with pytest.warns(
        UserWarning, match="LAMB runs on plain torch operations.*gave another step than they should on cpu"
    ):
        assert not proof.triton_is_right(LAMB([p]), p)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not proof.triton_is_right(LAMB([p]), p)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("ptxas: no such file\nand more")

    monkeypatch.setattr(fused_lamb, "launch", broken)
    p = parameter()
    with pytest.warns(UserWarning, match=r"its Triton kernels failed \(RuntimeError: ptxas: no such file\) on cpu"):
        assert not proof.triton_is_right(LAMB([p]), p)


def test_who_is_asked() -> None:
    """None asks for a proof on CUDA devices alone; True and False never."""

    class OnCuda:
        device, dtype, grad = torch.device("cuda:0"), torch.float32, None

        def is_contiguous(self) -> bool:
            return True

    def never() -> bool:
        raise AssertionError("asked")

    cuda: Any = OnCuda()
    assert choice.way_of(None, cuda, lambda: True, never) is Way.TRITON
    assert choice.way_of(None, cuda, lambda: False, never) is Way.PLAIN
    assert choice.way_of(True, cuda, never, never) is Way.TRITON
    assert choice.way_of(False, cuda, never, never) is Way.PLAIN
    assert choice.way_of(None, parameter(), never, lambda: False) is Way.PLAIN
    assert choice.way_of(None, parameter(), never, lambda: True) is Way.COMPILED
    cuda.dtype = torch.float64
    assert choice.way_of(None, cuda, never, never) is Way.PLAIN


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [LAMB, LARS, AdamW8bit, SGD8bit, LAMB8bit, LARS8bit])
def test_a_gpu_takes_the_kernels_unasked(kind: Any) -> None:
    from lightning_scale.optim.kernels.fused import launch

    p = nn.Parameter(torch.randn(5, 3, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = kind([p], lr=0.1)
    optimizer.step()
    before = launch.launches
    optimizer.step()
    assert launch.launches > before
