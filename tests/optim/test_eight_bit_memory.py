"""What the 8-bit states take, and what a step takes beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_scale.optim import LAMB, AdamW8bit, LAMB8bit, LARS8bit, SGD8bit
from lightning_scale.optim.backends.reference.chunks import LARGEST

KINDS = [(LAMB8bit, 2.05), (LARS8bit, 1.03), (AdamW8bit, 2.05), (SGD8bit, 1.03)]
every_kind = pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])


def stepped(kind: Any, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape).to(dtype)
    optimizer = kind(parameters, lr=0.01, **options)
    optimizer.step()
    return optimizer


def state_bytes(optimizer: Any) -> int:
    return sum(t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values())


def scratch(optimizer: Any) -> int:
    """Most bytes that a step holds at a time beside what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "most"), KINDS)
def test_bytes_of_state_for_each_element(kind: Any, most: float, dtype: torch.dtype) -> None:
    optimizer = stepped(kind, [(768, 768), (768, 3072), (30, 768)], dtype)
    elements = sum(p.numel() for p in optimizer.state)
    assert int(most) < state_bytes(optimizer) / elements <= most


def test_the_smallest_that_is_in_8_bits() -> None:
    optimizer = stepped(LAMB8bit, [(4096,), (4095,), (64, 64)])
    first, second, third = (set(state) for state in optimizer.state.values())
    assert first == third == {"step", "exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"}
    assert second == {"step", "exp_avg", "exp_avg_sq"}


def test_what_is_measured_is_a_steps_memory() -> None:
    """The reference holds float32 tensors as large as a layer: the measure sees them."""
    assert scratch(stepped(LAMB, [(512, 512)], fused=False)) >= 4 * 512 * 512


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.1, "maximize": True}])
@pytest.mark.parametrize("fused", [None, False])
def test_a_steps_memory_is_that_of_some_pieces(
    kind: Any, dtype: torch.dtype, changes: dict[str, Any], fused: bool | None
) -> None:
    few = scratch(stepped(kind, [(512, 512)], dtype, fused=fused, **changes))
    many = scratch(stepped(kind, [(512, 512)] * 8 + [(1024, 1024)], dtype, fused=fused, **changes))
    assert few <= (13 * 4 * LARGEST if fused is False else 10_000)  # (the kernels' memory is kept from step to step)
    assert many <= few + 100_000  # as a step's small numbers go with the parameters, so may some bytes


@every_kind
def test_a_tensor_that_is_not_contiguous_is_one_piece(kind: Any) -> None:
    parameter = nn.Parameter(torch.randn(1200, 900).t())
    parameter.grad = torch.randn(900, 1200)
    optimizer = kind([parameter], lr=0.01)
    optimizer.step()
    assert scratch(optimizer) <= 13 * 4 * parameter.numel()
