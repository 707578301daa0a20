"""Planned bytes beside those in memory, and the textbook's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale import optim
from lightning_scale.optim.backends.cpu.launch import chunks_of
from lightning_scale.optim.layout import whole_layout
from lightning_scale.optim.state.moments import EIGHT_BIT_FROM
from lightning_scale.plan.memory import Memory, Shapes, largest_model, memory
from lightning_scale.plan.optimizer_state import (
    KINDS,
    keeps_master,
    kept_updates,
    named_like,
    state_bytes,
    with_dtype,
)
from tests.distributed.launch import run_ranks
from tests.distributed.zero_runs import needs_deepspeed
from tests.plan import memory_runs
from tests.plan.memory_runs import MAKERS, SHAPES

GPT2 = Shapes(((50_257, 1600), *(((6400, 1600), (1600, 6400), (4800, 1600), (1600, 1600)) * 48)))
"""The matrices of GPT-2 with 48 layers of width 1600: 1.55 billion elements."""


def planned(strategy: str, optimizer: str, precision: str, ranks: int) -> Memory:
    low = torch.bfloat16 if precision == "bf16-true" else torch.float32
    made = MAKERS[optimizer](named_like(SHAPES, low))
    updates, master, moments = kept_updates(made), keeps_master(made), state_bytes(made)
    assert moments is not None
    return memory(
        strategy,
        Shapes(SHAPES),
        moments,
        ranks,
        precision,
        master=master,
        bucket_elements=0,
        updates=updates,
        on_cpu=True,
    )


def off(found: int, plan: Memory) -> float:
    """By what share the plan is off; on a CPU device and host are one."""
    return abs(found / (plan.device.total + plan.host.total) - 1)


@pytest.mark.parametrize("optimizer", MAKERS)
def test_one_process(optimizer: str, tmp_path: Path) -> None:
    precision = "bf16-true" if "master" in optimizer else "32-true"
    found = memory_runs.counted(tmp_path, None, optimizer, precision, 1)
    assert off(found, planned("ddp", optimizer, precision, 1)) < 0.005


def test_two_ranks(tmp_path: Path) -> None:
    for result in run_ranks("tests.plan.memory_runs", "sharded", tmp_path):
        errors = {case: off(found, planned(*case.split("/"), 2)) for case, found in result.items()}
        assert max(errors.values()) < 0.01, "\n".join(f"{case}: {error:.4f}" for case, error in errors.items())


@needs_deepspeed
@pytest.mark.timeout(400)
def test_zero(tmp_path: Path) -> None:
    for result in run_ranks("tests.plan.memory_runs", "zero", tmp_path, timeout=360):
        errors = {case: off(found, planned(*case.split("/"), 2)) for case, found in result.items()}
        assert max(errors.values()) < 0.01, "\n".join(f"{case}: {error:.4f}" for case, error in errors.items())


@pytest.mark.parametrize("optimizer", ["LAMB", "LAMB8bit"])
@pytest.mark.parametrize(
    "sizes",
    [
        [100],
        [3_000_000],
        [4000] * 400,
        [700_000] * 7,
        [2_097_152, 100],
        [100, 2_097_052, 9],
        [5, 2_000_000, 5000, 9] * 3,
    ],
)
def test_updates_wait_as_the_kernels_group_them(sizes: list[int], optimizer: str) -> None:
    named = named_like([(n,) for n in sizes], torch.float32)
    made = MAKERS[optimizer](named)
    quantized = tuple(optimizer == "LAMB8bit" and n >= EIGHT_BIT_FROM for n in sizes)
    kept = chunks_of(whole_layout([name for name, _ in named], [p for _, p in named]), quantized).scratch
    found = memory("ddp", Shapes(tuple((n,) for n in sizes)), sizes, 1, updates=kept_updates(made), on_cpu=True)
    assert found.device.updates == 4 * kept
    assert memory("ddp", Shapes(((1,),)), [8], 1, updates=kept_updates(made)).device.updates == 0  # a GPU's


@pytest.mark.parametrize(
    ("kind", "options", "waits"),
    [
        (optim.LARS, {}, False),
        (optim.LARS, {"trust_norm": "momentum"}, False),
        (optim.LARS8bit, {}, False),
        (optim.LARS8bit, {"trust_norm": "momentum"}, True),
        (optim.AdamW8bit, {}, False),
        (optim.LAMB, {"fused": False}, False),
    ],
)
def test_who_keeps_updates(kind: Any, options: dict[str, Any], waits: bool) -> None:
    """What a step has left in the optimizer's memory, and what the plan says."""
    params = [torch.nn.Parameter(torch.randn(80, 90)), torch.nn.Parameter(torch.randn(7))]
    optimizer = kind(params, lr=0.1, **options)
    assert bool(kept_updates(optimizer)) == waits
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    held = [4 * len(t) for t in optimizer._plan._scratch._held.values()]
    planned = memory("ddp", Shapes(((80, 90), (7,))), [1, 1], 1, updates=kept_updates(optimizer), on_cpu=True)
    assert held == ([planned.device.updates] if waits else [])


def test_the_textbook_line() -> None:
    """Rajbhandari et al. 2019, section 3.1: mixed-precision Adam holds 16 bytes a parameter, 24 GB for 1.5 billion."""
    model = Shapes(((1_500_000_000, 1),))
    named = named_like(model.trained, torch.bfloat16)
    adam = state_bytes(with_dtype(KINDS["AdamW"](named), torch.float32))
    assert adam == [8 * 1_500_000_000 + 4]
    found = memory("ddp", model, adam, 1, "bf16-true", master=True).device
    assert (found.parameters, found.gradients, found.optimizer + found.master) == (3e9, 3e9, 18e9 + 4)
    assert found.total == pytest.approx(24e9)
    # their table 1, for 7.5 billion on 64 GPUs: 120 GB, 31.4 (stage 1), 16.6 (2), 1.9 (3); gradients here are float32
    large = Shapes(((7_500_000_000, 1),))
    states = [8 * 7_500_000_000]
    assert memory("ddp", large, states, 64, "bf16-true", master=True).device.total == pytest.approx(120e9)
    by_stage = [memory(f"zero{i}", large, states, 64, "bf16-mixed", bucket_elements=0).device for i in (1, 2, 3)]
    assert by_stage[0].total - 4 * 7.5e9 == pytest.approx(31.4e9, rel=0.002)
    assert by_stage[1].total - 2 * 7.5e9 / 64 == pytest.approx(16.6e9, rel=0.003)
    assert by_stage[2].total - 2 * 7.5e9 / 64 == pytest.approx(1.9e9, rel=0.02)


def test_gpt2() -> None:
    named = named_like(GPT2.trained, torch.float32)
    moments = state_bytes(KINDS["AdamW"](named))
    assert moments is not None
    assert GPT2.numel == pytest.approx(1.55e9, rel=0.01)
    assert memory("ddp", GPT2, moments, 1, "32-true").device.total == pytest.approx(16 * GPT2.numel, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "per_element"),
    [("SGD, momentum", 4), ("AdamW", 8), ("LARS", 4), ("LAMB", 8), ("AdamW8bit", 2.03), ("LARS8bit", 1.02)],
)
def test_state_of_each_kind(kind: str, per_element: float) -> None:
    bytes_ = state_bytes(KINDS[kind](named_like([(1024, 1024)], torch.float32)))
    assert bytes_ is not None
    assert sum(bytes_) / 2**20 == pytest.approx(per_element, rel=0.005)


def test_an_optimizer_that_cannot_tell() -> None:
    params = [p for _, p in named_like([(4, 4)], torch.float32)]
    assert state_bytes(torch.optim.LBFGS(params)) is None


def test_the_largest_model_fills_the_device() -> None:
    model = Shapes(((1000, 1000),))
    found = memory("zero2", model, [8 * 10**6], 8, "bf16-mixed")
    size = largest_model(found, model, 80 * 10**9)
    grown = Shapes(((size // 1000, 1000),))
    total = memory("zero2", grown, [8 * grown.numel], 8, "bf16-mixed").device.total
    assert total == pytest.approx(80e9, rel=1e-4)
    assert largest_model(found, model, 10**8) == 0  # less than the bucket
