"""The 8-bit Triton kernels on many chunks, at any address, and on shares of flat tensors: the plain step, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_scale.optim import AdamW8bit, LAMB8bit
from lightning_scale.optim.backends.bucket import Backend
from lightning_scale.optim.layout import Layout, Run

from .fused_eight_bit_pairs import (
    every_plain_kind,
    parameters,
    same,
    set_gradients,
)
from .fused_kernels import every_device
from .kinds import bits
from .test_eight_bit_layouts import CUT, KERNELS, LAYERS, UNCUT, Rank, numbers, partition

pytest.importorskip("triton")

from lightning_scale.optim.backends.triton import chunks, launch

pytestmark = pytest.mark.usefixtures("exact_square_roots")


@every_device
@every_plain_kind
def test_many_chunks(make: Callable[..., Any], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = [(150, 61), (3000,), (4097,)]
    a, b = parameters(device=device, shapes=shapes), parameters(device=device, shapes=shapes)
    ours, theirs = make(a, fused=True), make(b, fused=False)
    monkeypatch.setattr(chunks, "QUANTIZED_CHUNK", 1024)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)


@every_device
def test_what_lies_anywhere(device: str) -> None:
    """Parameters, gradients and state that do not begin at a multiple of four elements."""
    results = []
    for shift in (0, 1, 4):
        params = [nn.Parameter(torch.randn(5000, generator=torch.Generator().manual_seed(1)).to(device))]
        room = torch.zeros(5010, device=device)
        room[shift : shift + 5000] = params[0].detach()
        params[0].data = room[shift : shift + 5000]
        optimizer = AdamW8bit(params, fused=True)
        for step in range(2):
            set_gradients(params, step)
            optimizer.step()
        results.append((bits(params[0]), bits(optimizer)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("edges", [*UNCUT[1:], *CUT])
@pytest.mark.parametrize("kernel", KERNELS)
def test_flat_partitions(kernel: str, edges: list[int]) -> None:
    """Segments that begin and end anywhere, small layers beside large ones in the same local tensor."""
    layout = partition(edges, 0, len(edges) + 1)
    plain, fused = (Rank(kernel, layout, 0, numbers(0), of) for of in (Backend.REFERENCE, Backend.TRITON))
    for step in range(2):
        results = plain.step(numbers(step + 1)), fused.step(numbers(step + 1))
        for p, q in zip(plain.weights, fused.weights, strict=True):
            assert bits(p) == bits(q)
        assert bits(plain.states) == bits(fused.states)
        if results[0] is not None:
            assert bits([n._asdict() for n in results[0]]) == bits([n._asdict() for n in results[1]])


def test_an_empty_share() -> None:
    rank = Rank("lamb", Layout(LAYERS, (Run(0, 0, 0, 4270, 0),), (0,)), 0, numbers(0), Backend.TRITON)
    (norms,) = rank.step(numbers(1))
    assert norms.weight.tolist() == [0.0] * 4 and norms.ratio.tolist() == [1.0] * 4


def test_a_state_of_another_layout_is_refused() -> None:
    rank = Rank("lamb", partition([1000], 0, 2), 0, numbers(0), Backend.TRITON)
    rank.layout = partition([2000], 0, 2)
    with pytest.raises(ValueError, match=r"exp_avg of '0' .*: load a state_dict of the same parameters"):
        rank.step(numbers(1))


def test_one_block_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; the interpreter's time is one per tile, so elsewhere it takes many blocks."""
    monkeypatch.setattr(launch, "INTERPRETED_ROWS", launch.ROWS)
    a, b = parameters(shapes=[(4150,)]), parameters(shapes=[(4150,)])
    ours, theirs = LAMB8bit(a, fused=True), LAMB8bit(b, fused=False)
    for step in range(2):
        set_gradients(a, step), set_gradients(b, step)
        ours.step(), theirs.step()
        same(ours, theirs, a, b)
