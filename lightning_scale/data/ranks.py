"""Which data-parallel rank this is, and of how many: as a run's strategy says, or ``torch.distributed``, or as a plan for another
machine pretends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_told: tuple[int, int] | None = None
_pretended: ContextVar[int | None] = ContextVar("pretended_ranks", default=None)


def rank() -> int:
    """This rank; 0 without a process group, and in a plan."""
    if _pretended.get() is not None or not _distributed():
        return 0
    return torch.distributed.get_rank() if _told is None else _told[0]


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    pretended = _pretended.get()
    if pretended is not None:
        return pretended
    if not _distributed():
        return 1
    return torch.distributed.get_world_size() if _told is None else _told[1]


def tell(data_parallel: tuple[int, int] | None) -> None:
    """Say which data-parallel rank this is, and of how many, where several ranks hold one model (tensor parallelism).

    Those take the same samples, and count as one. None: every rank is one.
    """
    global _told
    _told = data_parallel


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
