"""What tests of FSDP2's shards share: meshes, whole tensors, and how two optimizers' statistics and collectives compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
    """The largest relative difference between two optimizers' `layer_stats()`, which have the same layers."""
    found, expected = ours.layer_stats(), theirs.layer_stats()
    assert found.keys() == expected.keys()
    pairs = [pair for name in expected for pair in zip(found[name], expected[name], strict=True)]
    return largest(abs(float(a) - float(b)) / max(float(b), 1e-30) for a, b in pairs)


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
