"""Triton kernels that nobody asked for are used only where they take the plain step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import LAMB, LARS, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit, self_check
from lightning_scale.optim.backends import choice
from lightning_scale.optim.backends.bucket import Backend
from lightning_scale.optim.layout import whole_layout

pytest.importorskip("triton")

from lightning_scale.optim.backends.triton import lamb as fused_lamb
from tests.optim.triton.stand_in import bound_only


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_known", {})


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
    assert self_check.triton_is_right(Mine(p), p)
    assert torch.equal(torch.get_rng_state(), state)
    assert not [w for w in recwarn if "plain torch operations" in str(w.message)]


def test_a_wrong_step_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_lamb.bounds
    monkeypatch.setattr(fused_lamb, "bounds", lambda trust: (*right(trust)[:3], 0.5))
    p = parameter()
    with pytest.warns(
        UserWarning, match="LAMB runs on plain torch operations.*gave another step than they should on cpu"
    ):
        assert not self_check.triton_is_right(LAMB([p]), p)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not self_check.triton_is_right(LAMB([p]), p)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("ptxas: no such file\nand more")

    monkeypatch.setattr(fused_lamb, "launch", broken)
    p = parameter()
    with pytest.warns(UserWarning, match=r"its Triton kernels failed \(RuntimeError: ptxas: no such file\) on cpu"):
        assert not self_check.triton_is_right(LAMB([p]), p)


def test_who_is_asked() -> None:
    """None asks for a proof on CUDA devices alone; True and False never."""

    class OnCuda:
        device, dtype, grad = torch.device("cuda:0"), torch.float32, None

        def is_contiguous(self) -> bool:
            return True

    def never() -> bool:
        raise AssertionError("asked")

    cuda: Any = OnCuda()
    assert choice.backend_of(None, cuda, False, lambda: True) is Backend.TRITON
    assert choice.backend_of(None, cuda, False, lambda: False) is Backend.REFERENCE
    assert choice.backend_of(True, cuda, False, never) is Backend.TRITON
    assert choice.backend_of(False, cuda, False, never) is Backend.REFERENCE
    assert choice.backend_of(None, parameter(), False, never) is Backend.CPU
    assert choice.backend_of(False, parameter(), False, never) is Backend.REFERENCE
    cuda.dtype = torch.float64
    assert choice.backend_of(None, cuda, False, never) is Backend.REFERENCE


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [LAMB, LARS, AdamW8bit, SGD8bit, LAMB8bit, LARS8bit])
def test_a_gpu_takes_the_kernels_unasked(kind: Any) -> None:
    from lightning_scale.optim.backends.triton import launch

    p = nn.Parameter(torch.randn(5, 3, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = kind([p], lr=0.1)
    optimizer.step()
    before = launch.launches
    optimizer.step()
    assert launch.launches > before


def launched_kernels(monkeypatch: pytest.MonkeyPatch, step: Any) -> set[str]:
    """Names of the kernels that are launched meanwhile."""
    from lightning_scale.optim.backends.triton import launch, sums

    seen: set[str] = set()

    def noted(kernel: Any, *args: Any, **options: Any) -> None:
        seen.add(kernel.fn.__name__)
        launch.launch(kernel, *args, **options)

    with monkeypatch.context() as patch:
        for module in (fused_lamb, sums):
            patch.setattr(module, "launch", noted)
        step()
    return seen


@pytest.mark.parametrize("layout", ["plain", "sharded", "replicated", "flat"])
def test_the_small_problem_launches_what_training_launches(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether layers lie whole on this rank decides the kernels, and not whether parameters are DTensors."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        p = nn.Parameter(values.clone())
        if layout in ("sharded", "replicated"):
            mesh = torch.distributed.device_mesh.DeviceMesh("cpu", [0, 1])
            placement = Shard(0) if layout == "sharded" else Replicate()
            p = nn.Parameter(DTensor.from_local(values.clone(), mesh, [placement], run_check=False))
        if layout == "flat":
            p = nn.Parameter(values.flatten())
        p.grad = torch.ones_like(p)
        optimizer = LAMB([p], fused=True, skip_nonfinite=False)  # kernels that are not run find anything
        if layout == "flat":
            whole = whole_layout(["w"], [p])
            optimizer.attach_layouts({p: replace(whole, all_reduce=lambda sums: None)})
            optimizer.decide([(whole, [p.grad])])
        with bound_only():
            trained = launched_kernels(monkeypatch, optimizer.step)
            where = self_check.where_of(optimizer, p)
            tried = launched_kernels(monkeypatch, lambda: self_check.after_some_steps(optimizer, True, where))
    finally:
        torch.distributed.destroy_process_group()
    assert trained <= tried
    assert ("_both" in trained) == (layout in ("plain", "replicated"))


def test_another_form_of_the_kernels_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(self_check, "_disagreement", lambda optimizer, where: tried.append(optimizer))
    p = parameter()
    for options in ({}, {"weight_decay": 0.1}, {"trust_norm": "momentum"}, {"nesterov": True}, {"momentum": 0.0}):
        self_check.triton_is_right(LARS([p], lr=0.1, **options), p)  # type: ignore[arg-type]
    assert len(tried) == 4  # a weight decay is no constant of the kernels
