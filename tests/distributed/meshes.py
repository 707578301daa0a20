"""What tests of FSDP2's shards share: meshes, whole tensors, and how two optimizers' statistics and collectives compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

FSDP2 = hasattr(torch.cpu.Stream, "record_event")  # torch 2.7 and later: FSDP2Strategy says what is missing
needs_fsdp2 = pytest.mark.skipif(not FSDP2, reason="FSDP2 on CPUs needs torch 2.7")


def mesh_of(*shape: int) -> Any:
    """Of shards, or of replicas and shards."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])


def whole(t: Tensor) -> Tensor:
    """All of a DTensor; every rank calls it."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def own(t: Tensor) -> Tensor:
    """This rank's share of a DTensor."""
    return t.to_local() if hasattr(t, "to_local") else t


def largest(differences: Iterable[float]) -> float:
    """The largest, infinity where one is NaN: Python's ``max`` passes over those."""
    return max((math.inf if math.isnan(d) else d for d in differences), default=0.0)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest element; infinity where anything is NaN."""
    difference = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-30)
    return largest([float(difference)])


def relative_stats(ours: Any, theirs: Any) -> float:
    """The largest relative difference between two optimizers' `layer_stats()`, which have the same layers.

    The norm of a weight is compared with the length of a step where that is larger: a weight of one element that passes through
    zero keeps the rounding of where it was before.
    """
    found, expected, rules = ours.layer_stats(), theirs.layer_stats(), theirs.layer_rules()
    assert found.keys() == expected.keys()

    def differences(name: str) -> Iterator[float]:
        numbers = [float(x) for x in expected[name]]
        weight, update, ratio = numbers
        scales = [max(weight, float(rules[name].lr) * ratio * update), update, ratio]
        for a, b, scale in zip(found[name], numbers, scales, strict=True):
            yield abs(float(a) - b) / max(scale, 1e-30)

    return largest(d for name in expected for d in differences(name))


def all_reduces(call: Callable[[], Any]) -> int:
    """How many of these collectives there are in a call."""
    calls: list[Any] = []
    real = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *a, **k: (calls.append(a), real(*a, **k))[1]
    try:
        call()
    finally:
        torch.distributed.all_reduce = real
    return len(calls)
