"""Numbers of the host on a device, brought there without waiting for it; its widest type; and how tensors lie in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.layout import Layout

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that have no float64."""


def widest(device: torch.device) -> torch.dtype:
    """What sums and norms are computed in on a device: float64 where it has that."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def bias_correction(steps: Tensor, beta: float) -> Tensor:
    """1 - β^t of each float32 step count t, computed in float64, or to float32's precision where a device has none."""
    if widest(steps.device) == torch.float64:
        return 1 - beta ** steps.double()
    # 1 - β^t itself would lose what β is short of 1.
    return -torch.expm1(steps * (math.log(beta) if beta else -math.inf))


@dataclass
class _Constant:
    values: list[Any]
    tensor: Tensor
    spare: Tensor | None
    """Host memory of the same size for a CUDA graph: none can be pinned while one is captured."""


def constant(layout: Layout, name: str, values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a 1-D tensor, kept with the layout while they stay the same: read only."""
    key = (name, dtype, device)
    known: _Constant | None = layout.cache.get(key)
    values = list(values)
    if is_capturing(device):
        return _for_graph(layout, key, values, known)
    if known is None or known.values != values or known.spare is None:
        spare = known.spare if known is not None else None
        if spare is None or len(spare) != len(values):
            spare = torch.empty(len(values), dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
        source = _host_memory(values, dtype, device)
        known = layout.cache[key] = _Constant(values, source.to(device, non_blocking=True), spare)
    return known.tensor


def _for_graph(
    layout: Layout, key: tuple[str, torch.dtype, torch.device], values: list[Any], known: _Constant | None
) -> Tensor:
    """Numbers that a CUDA graph reads at every replay, without asking whether they still exist: kept as long as the layout.

    A copy that is captured is made at every replay and not now, so its target is no tensor for steps outside of the graph.
    """
    name, dtype, device = key
    if known is not None and known.values == values:
        keep_captured(layout, known.tensor)
        return known.tensor
    sources = [own for of, its, own in layout.copied_by_graphs if of == key and its == values]
    if not sources:
        if known is None or known.spare is None or len(known.spare) != len(values):
            raise RuntimeError(
                f"a CUDA graph is being captured, and {name} of this step cannot be brought to {device}: no memory can be pinned"
                " now. Take one step outside of a graph before each capture."
            )
        sources.append(known.spare.copy_(torch.tensor(values, dtype=dtype, device="cpu")))
        known.spare = None
        layout.copied_by_graphs.append((key, values, sources[0]))
    return sources[0].to(device, non_blocking=True)


def keep_captured(layout: Layout, tensor: Tensor) -> None:
    """Let a tensor that a CUDA graph reads or writes live as long as the layout."""
    if not any(tensor is kept for kept in layout.captured):
        layout.captured.append(tensor)


def _host_memory(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pinned for a GPU, so that the copy does not wait for it."""
    source = torch.tensor(values, dtype=dtype, device="cpu")
    return source.pin_memory() if device.type == "cuda" else source


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched on a device now becomes part of a CUDA graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def number(value: float | Tensor, device: torch.device) -> Tensor:
    """A number as a 0-d float32 tensor, filled on the device: a copy from the host would wait for it."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


def dense(t: Tensor) -> bool:
    """Whether the elements lie in one run of memory, each once, in whatever order."""
    if t.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected and t.numel():
            return False
        expected *= size
    return True


def in_memory_order(t: Tensor) -> Tensor:
    """A dense tensor's elements as they lie, 1-D, a view."""
    return t.view(-1) if t.is_contiguous() else t.as_strided((t.numel(),), (1,))
