"""What an optimizer keeps, and what a step takes beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def state_bytes(optimizer: Any) -> int:
    """Bytes of all memory that the tensors of its state lie in, each once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(optimizer.state)]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The plain tensors in nested containers, and those that tensor subclasses are made of."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, name))
        else:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _tensors(inner)


def peak_extra_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """Most memory that a step holds beside what was there; None where no one counts it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
