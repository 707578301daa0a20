"""How a tensor's elements lie in memory."""

from __future__ import annotations

from torch import Tensor


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
