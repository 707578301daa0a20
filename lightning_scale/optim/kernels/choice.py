"""Which implementation takes a parameter's step."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_scale.optim.kernels.memory import dense
from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.sharding import local

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def way_of(fused: bool | None, p: Tensor, proven: Callable[[], bool]) -> Way:
    """How a parameter's step is taken.

    Args:
        fused: The optimizer's option. ``None``: Triton kernels for CUDA devices where they can be had and take the
            parameter, plain operations otherwise.
        p: The parameter, with its gradient.
        proven: Whether the kernels take the plain step where the parameter is; asked where nobody insists on them.

    Raises:
        ValueError: for ``True`` and a parameter that the kernels do not take.
    """
    if fused is False:
        return Way.PLAIN
    reason = _not_for_triton(p)
    if fused and reason is not None:
        raise ValueError(f"fused=True asks for Triton kernels for every parameter, and {reason}, or leave fused out.")
    if fused or (p.device.type == "cuda" and has_triton() and reason is None and proven()):
        return Way.TRITON
    return Way.PLAIN


def _not_for_triton(p: Tensor) -> str | None:
    grad = p.grad if p.grad is not None else p
    p = local(p)
    if p.device.type != "cuda" and not (p.device.type == "cpu" and interpreted()):
        return f"one is on {p.device}: move the model to a CUDA device"
    if p.dtype not in _FUSED_DTYPES or grad.dtype not in _FUSED_DTYPES:
        return f"one is {p.dtype} with a gradient of {grad.dtype}: use float32, bfloat16 or float16"
    if not dense(p):
        return "one has gaps between its elements or repeats them: use a contiguous parameter"
    return None
