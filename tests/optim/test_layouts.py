"""How parameters and gradients lie in memory, and how many elements they have."""

from __future__ import annotations

import pytest
import torch

from .pairs import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, SHAPES, STEPS, Pair, arrays_of, rate


def run(pair: Pair, shapes: list[tuple[int, ...]], steps: int = STEPS, seed: int = 1) -> None:
    """Some steps with new gradients and a new rate each."""
    for step in range(steps):
        pair.step(arrays_of(seed * 1000 + step, shapes), lr=rate(step))


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_layouts_in_low_precision(name: str, dtype: torch.dtype, layout: str, fused: bool | None) -> None:
    options = {"weight_decay": 0.1, "max_grad_norm": 1.0, "master_weights": dtype == torch.bfloat16, "fused": fused}
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], options, dtype=dtype, layout=layout)
    addresses = [p.data_ptr() for p in pair.parameters]
    run(pair, SHAPES)
    pair.check(FLOAT32_TOLERANCE)
    assert [p.data_ptr() for p in pair.parameters] == addresses


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
@pytest.mark.parametrize("fused", [None, False])
def test_sizes_around_the_edges_of_vectors_and_chunks(name: str, fused: bool | None) -> None:
    sizes = [(1023,), (1024,), (1025,), (33, 31), (64, 64), (257, 129), (3, 1024), (70_001,)]
    options = {"weight_decay": 0.1, "max_grad_norm": 5.0, "exclude_1d": False, "fused": fused}
    pair = Pair(name, [(arrays_of(0, sizes), {})], options, dtype=torch.float32)
    run(pair, sizes, steps=3)
    pair.check(FLOAT32_TOLERANCE)


@pytest.mark.parametrize("gradient_layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_a_gradient_may_lie_otherwise_than_its_parameter(name: str, gradient_layout: str) -> None:
    pair = Pair(name, [(arrays_of(0, SHAPES), {})], {"weight_decay": 0.1}, layout="channels_last")
    for step in range(3):
        pair.layout = gradient_layout
        pair.step(arrays_of(step + 1, SHAPES), lr=rate(step))
        pair.check(FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_an_expanded_gradient(name: str) -> None:
    """A gradient of stride 0: every element is the same memory."""
    pair = Pair(name, [(arrays_of(0, [(4, 6)]), {})], {"weight_decay": 0.1, "max_grad_norm": 1.0, "maximize": True})
    for _ in range(3):
        pair.parameters[0].grad = torch.ones((), dtype=torch.float64).expand(4, 6)
        pair.step_as_they_are()
        pair.check(FLOAT64_TOLERANCE)
