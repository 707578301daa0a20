"""Flat partitions that cut layers anywhere: the same codes as whole parameters wherever no block is cut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_scale.optim.backends import dispatch
from lightning_scale.optim.backends.bucket import Backend, Bucket, Guard, TrustRatio
from lightning_scale.optim.backends.cpu import launch as cpu_chunks
from lightning_scale.optim.backends.reference import chunks as reference_chunks
from lightning_scale.optim.layout import LayerInfo, Layout, Run
from lightning_scale.optim.quantization import BLOCK, blocks
from lightning_scale.optim.state.moments import PlainMoment, QuantizedMoment, moments, new_moment

# Two layers in 8 bits, two that are too small for it.
SHAPES = [(70, 61), (33,), (4100,), (5, 9)]
LAYERS = tuple(LayerInfo(str(i), int(np.prod(shape)), len(shape)) for i, shape in enumerate(SHAPES))
TOTAL = sum(layer.numel for layer in LAYERS)
MOMENTS = {"lamb": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}
each_backend = pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
KERNELS = ["lamb", "lars", "lars-momentum", "adamw", "sgd"]


def partition(edges: list[int], first: int, last: int, all_reduce: Callable[[Tensor], None] | None = None) -> Layout:
    """The layers, one behind the other, cut at `edges` into local tensors; here are those from `first` to `last`."""
    cuts = [0, *edges, TOTAL]
    runs = []
    for tensor in range(first, last):
        position, layer_begin = cuts[tensor], 0
        for number, layer in enumerate(LAYERS):
            a, b = max(position, layer_begin), min(cuts[tensor + 1], layer_begin + layer.numel)
            if a < b:
                runs.append(Run(number, tensor - first, a - position, a - layer_begin, b - a))
            layer_begin += layer.numel
    numels = tuple(cuts[i + 1] - cuts[i] for i in range(first, last))
    return Layout(LAYERS, tuple(runs), numels, all_reduce)


class Rank:
    """Local tensors in a layout, their state, and the kernel that steps them."""

    def __init__(
        self, kernel: str, layout: Layout, offset: int, weights: Tensor, backend: Backend = Backend.REFERENCE
    ) -> None:
        self.kernel, self.layout, self.backend = kernel, layout, backend
        self.offsets = [offset + sum(layout.tensor_numels[:i]) for i in range(len(layout.tensor_numels))]
        self.weights = self.local(weights)
        keys = MOMENTS.get(kernel, ("momentum_buffer",))
        self.states: list[dict[str, Tensor]] = []
        for tensor, w in enumerate(self.weights):
            here = [s for s in layout.runs if s.tensor == tensor]
            state = {"step": torch.zeros(())}
            for key in keys:
                state |= new_moment(key, w, layout.layers, here)
            self.states.append(state)

    def local(self, everything: Tensor) -> list[Tensor]:
        sizes = self.layout.tensor_numels
        return [everything[o : o + n].clone() for o, n in zip(self.offsets, sizes, strict=True)]

    def moments(self, key: str) -> Any:
        return moments(key, self.layout, self.states, torch.float32)

    def step(self, gradient: Tensor) -> Any:
        algorithm, _, norm = self.kernel.partition("-")
        options = {
            "lr": 0.1, "maximize": False, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-6, "bias_correction": True,
            "momentum": 0.9, "dampening": 0.2, "nesterov": False, "lr_in_momentum": True, "trust_coefficient": 0.01,
            "trust_norm": norm or "gradient", "weight_norm_clip": None, "trust_ratio_clip": None,
        }  # fmt: skip
        if algorithm == "lars":
            options["eps"] = 1e-8
        names = tuple(layer.name for layer in LAYERS)
        bucket = Bucket(options, names, self.layout, self.backend, self.weights, self.weights, self.local(gradient),
                        self.states, in_order=True, eight_bit_from=4096)  # fmt: skip
        bucket.__dict__["weight_decay"] = [0.1, 0.0, 0.3, 0.1]
        bucket.__dict__["trust"] = TrustRatio(torch.tensor([True, False, True, True]), None, None)
        return getattr(dispatch, algorithm)([bucket], Guard())

    def collect(self, into: dict[str, Tensor]) -> None:
        """Scatter weights, codes, scales and float32 moments to their places in the whole."""
        for w, offset in zip(self.weights, self.offsets, strict=True):
            into["weights"][offset : offset + len(w)] = w
        for key in MOMENTS.get(self.kernel, ("momentum_buffer",)):
            for segment, moment in zip(self.layout.runs, self.moments(key), strict=True):
                begin = sum(layer.numel for layer in LAYERS[: segment.layer]) + segment.layer_start
                here = slice(begin, begin + segment.length)
                into[key][here] = moment.read()
                if isinstance(moment, QuantizedMoment):
                    assert LAYERS[segment.layer].numel >= 4096
                    into[f"{key} codes"][here] = moment.codes.float()
                    for (first, size), scale in zip(
                        blocks(segment.layer_start, segment.length), moment.absmax, strict=True
                    ):
                        into[f"{key} absmax"][begin + first : begin + first + size] = scale
                else:
                    assert isinstance(moment, PlainMoment) and LAYERS[segment.layer].numel < 4096


def whole(ranks: list[Rank]) -> dict[str, Tensor]:
    keys = MOMENTS.get(ranks[0].kernel, ("momentum_buffer",))
    names = ["weights", *keys, *(f"{key} {what}" for key in keys for what in ("codes", "absmax"))]
    found = {name: torch.full((TOTAL,), -1.0) for name in names}
    for rank in ranks:
        rank.collect(found)
    return found


def cut_elements(edges: list[int]) -> Tensor:
    """Which elements lie in a block of an 8-bit layer that an edge cuts."""
    cut = torch.zeros(TOTAL, dtype=torch.bool)
    begin = 0
    for layer in LAYERS:
        for first in range(0, layer.numel, BLOCK):
            last = min(first + BLOCK, layer.numel)
            if layer.numel >= 4096 and any(begin + first < e < begin + last for e in edges):
                cut[begin + first : begin + last] = True
        begin += layer.numel
    return cut


def numbers(seed: int) -> Tensor:
    return torch.randn(TOTAL, generator=torch.Generator().manual_seed(seed))


UNCUT = [[], [1024, 4270, 4303 + 256 * 9], [4270 + 10, TOTAL - 20]]
CUT = [[1000], [777, 4275, 6001], [1, 2, 300, 4000, 4400, 8300, TOTAL - 1]]


@each_backend
@pytest.mark.parametrize("edges", UNCUT)
@pytest.mark.parametrize("kernel", KERNELS)
def test_partitions_that_cut_no_block_have_the_same_bits(kernel: str, edges: list[int], backend: Backend) -> None:
    assert not cut_elements(edges).any()
    one_each = [layer.numel for layer in LAYERS]
    plain = Rank(kernel, partition(list(np.cumsum(one_each[:-1])), 0, 4), 0, numbers(0), backend)
    flat = Rank(kernel, partition(edges, 0, len(edges) + 1), 0, numbers(0), backend)
    for step in range(4):
        plain.step(numbers(step + 1))
        flat.step(numbers(step + 1))
    expected = whole([plain])
    for name, value in whole([flat]).items():
        assert torch.equal(value, expected[name]), name


@each_backend
@pytest.mark.parametrize("chunk", [1 << 18, 512])
@pytest.mark.parametrize("edges", CUT)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cut_block_has_a_scale_for_each_part_and_the_others_do_not_know(
    kernel: str, edges: list[int], chunk: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_chunks, "LARGEST", chunk)
    monkeypatch.setattr(cpu_chunks, "CHUNK", chunk)
    cut = cut_elements(edges)
    assert cut.any()
    plain = Rank(kernel, partition([], 0, 1), 0, numbers(0), backend)
    flat = Rank(kernel, partition(edges, 0, len(edges) + 1), 0, numbers(0), backend)
    steps = 4 if kernel in ("adamw", "sgd") else 1  # a layer's ratio brings a cut block's rounding to the others
    for step in range(steps):
        plain.step(numbers(step + 1))
        flat.step(numbers(step + 1))
    expected, got = whole([plain]), whole([flat])
    for name, value in got.items():
        assert torch.equal(value[~cut], expected[name][~cut]), name
        assert steps > 1 or name != "weights" or torch.equal(value, expected[name])
    assert any(not torch.equal(value[cut], expected[name][cut]) for name, value in got.items() if "absmax" in name)


class Together:
    """An all-reduce between threads, in the order of the ranks."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.given: dict[int, Tensor] = {}
        self.calls = 0

    def of(self, rank: int) -> Callable[[Tensor], None]:
        def all_reduce(tensor: Tensor) -> None:
            self.given[rank] = tensor.clone()
            self.calls += 1
            self.barrier.wait(60)
            tensor.copy_(torch.stack([self.given[r] for r in sorted(self.given)]).sum(0))
            self.barrier.wait(60)

        return all_reduce


@each_backend
@pytest.mark.parametrize("edges", [[4303 + 512], [2000], [4200, 4310]])
@pytest.mark.parametrize("kernel", ["lamb", "lars", "lars-momentum"])
def test_ranks_share_the_norms_in_one_collective(kernel: str, edges: list[int], backend: Backend) -> None:
    together = Together(2)
    plain = Rank(kernel, partition([], 0, 1), 0, numbers(0), backend)
    ends = [(0, 1, 0), (1, len(edges) + 1, edges[0])]
    ranks = [
        Rank(kernel, partition(edges, first, last, together.of(i)), offset, numbers(0), backend)
        for i, (first, last, offset) in enumerate(ends)
    ]
    (expected,) = plain.step(numbers(1))
    results: dict[int, Any] = {}

    def run(i: int) -> None:
        results[i] = ranks[i].step(numbers(1))[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together.calls == 2
    for i in range(2):
        for name in ("weight", "update", "ratio"):
            assert torch.equal(getattr(results[i], name), getattr(expected, name)), name
    assert torch.equal(whole(ranks)["weights"], whole([plain])["weights"])


@each_backend
def test_an_empty_share(backend: Backend) -> None:
    layout = Layout(LAYERS, (Run(0, 0, 0, 4270, 0),), (0,))
    rank = Rank("lamb", layout, 0, numbers(0), backend)
    (norms,) = rank.step(numbers(1))
    assert norms.weight.tolist() == [0.0] * 4 and norms.ratio.tolist() == [1.0] * 4


@each_backend
def test_a_state_of_another_layout_is_refused(backend: Backend) -> None:
    rank = Rank("lamb", partition([1000], 0, 2), 0, numbers(0), backend)
    rank.layout = partition([2000], 0, 2)
    with pytest.raises(ValueError, match=r"exp_avg of '0' .*: load a state_dict of the same parameters"):
        rank.step(numbers(1))
