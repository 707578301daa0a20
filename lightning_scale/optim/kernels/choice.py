"""Which implementation takes a parameter's step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lightning_scale.optim.kernels.work import Guard, LayerNorms

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class AnyBucket(Protocol):
    """Buckets of all kinds."""

    fused: bool


AnyBucketT = TypeVar("AnyBucketT", bound=AnyBucket)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported (it is, only where it is used)."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_fused(fused: bool | None, without_kernels: str | None) -> None:
    """Refuse ``fused=True`` where there are no kernels, or no Triton.

    Args:
        fused: The optimizer's option.
        without_kernels: The optimizer's name, where it has plain torch operations only.

    Raises:
        ValueError: says what to write, or install.
    """
    if fused and without_kernels is not None:
        raise ValueError(
            f"fused=True asks for Triton kernels, which {without_kernels} does not have in this version of lightning_scale:"
            " leave fused out, or write fused=False for the plain torch operations."
        )
    if fused and not has_triton():
        raise ValueError(
            "fused=True asks for Triton kernels, and triton is not installed: install it (pip install triton), leave fused"
            " out, or write fused=False for the plain torch operations."
        )


def runs_fused(fused: bool | None, p: Tensor) -> bool:
    """Whether a parameter's step is taken by Triton kernels.

    Args:
        fused: The optimizer's option; ``None`` is ``False`` until the kernels have been run on GPUs.
        p: The parameter, with its gradient.

    Raises:
        ValueError: for ``True`` and a parameter that the kernels do not take.
    """
    if not fused:
        return False
    grad = p.grad if p.grad is not None else p
    reason = None
    if p.device.type != "cuda" and not (p.device.type == "cpu" and interpreted()):
        reason = f"one is on {p.device}: move the model to a CUDA device"
    elif p.dtype not in _FUSED_DTYPES or grad.dtype not in _FUSED_DTYPES:
        reason = f"one is {p.dtype} with a gradient of {grad.dtype}: use float32, bfloat16 or float16"
    elif not _dense(p):
        reason = "one has gaps between its elements or repeats them: use a contiguous parameter"
    if reason is not None:
        raise ValueError(f"fused=True asks for Triton kernels for every parameter, and {reason}, or leave fused out.")
    return True


def _dense(t: Tensor) -> bool:
    """Whether the elements lie in one run of memory, in whatever order."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected and t.numel():
            return False
        expected *= size
    return True


def each_its_way(
    buckets: Sequence[AnyBucketT],
    guard: Guard,
    plain: Callable[[Sequence[AnyBucketT], Guard], list[LayerNorms]],
    fused: Callable[[Sequence[AnyBucketT], Guard], list[LayerNorms]],
) -> list[LayerNorms]:
    """Run the buckets for which there is a kernel, and the others; norms in the buckets' order."""
    norms: dict[int, LayerNorms] = {}
    for way, run in ((False, plain), (True, fused)):
        places = [i for i, bucket in enumerate(buckets) if bucket.fused == way]
        if places:
            norms.update(zip(places, run([buckets[i] for i in places], guard), strict=True))
    return [norms[i] for i in range(len(buckets))]
