"""Which rank this is, and of how many: as ``torch.distributed`` says, or as a plan for another machine pretends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_pretended: ContextVar[int | None] = ContextVar("pretended_ranks", default=None)


def rank() -> int:
    """This rank; 0 without a process group, and in a plan."""
    return torch.distributed.get_rank() if _pretended.get() is None and _distributed() else 0


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    pretended = _pretended.get()
    if pretended is not None:
        return pretended
    return torch.distributed.get_world_size() if _distributed() else 1


@contextmanager
def as_if(ranks: int) -> Iterator[None]:
    """Within, this is rank 0 of so many."""
    token = _pretended.set(ranks)
    try:
        yield
    finally:
        _pretended.reset(token)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
