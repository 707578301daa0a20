"""Which implementation takes a parameter's step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Way
from lightning_scale.optim.backends.device import dense
from lightning_scale.optim.dtensor import local

# Compiling takes 10 to 25 s where it was never done, and saves about 2 ns an element and step (LAMB): from 8 million
# elements on that is earned back within some 1,000 steps. Of sizes alone, so that a resumed run takes the same way.
COMPILED_FROM = 1 << 23

_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def has_triton() -> bool:
    """Whether Triton can be imported (it is, only where it is used)."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_fused(fused: bool | None) -> None:
    """Refuse ``fused=True`` where there is no Triton.

    Raises:
        ValueError: says what to install, or to write.
    """
    if fused and not has_triton():
        raise ValueError(
            "fused=True asks for Triton kernels, and triton is not installed: install it (pip install triton), leave fused"
            " out, or write fused=False for the plain torch operations."
        )


def way_of(fused: bool | None, p: Tensor, proven: Callable[[], bool], compiled: Callable[[], bool]) -> Way:
    """How a parameter's step is taken.

    Args:
        fused: The optimizer's option. ``None``: Triton kernels for CUDA devices where they can be had and take the
            parameter, compiled ones for CPUs where that pays, plain operations otherwise.
        p: The parameter, with its gradient.
        proven: Whether Triton kernels take the plain step where the parameter is; asked where nobody insists on them.
        compiled: Whether steps are large enough for compiled kernels.

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
    return Way.COMPILED if _for_compiled(p) and compiled() else Way.PLAIN


def pays_to_compile(parameters: Iterable[Tensor]) -> bool:
    """Whether an optimizer of these parameters earns back the time that its CPU kernels take to compile."""
    if torch.compiler.is_compiling():  # inside a user's own graph everything must be traceable
        return False
    return sum(p.numel() for p in parameters if p.device.type == "cpu" and p.dtype in _FUSED_DTYPES) >= COMPILED_FROM


def positive_in_float32(value: float) -> bool:
    """Whether a number is above 0 as the compiled kernels see it: with an ε that is not, padding would be 0/0."""
    return value > 2.0**-126


def _for_compiled(p: Tensor) -> bool:
    grad = p.grad if p.grad is not None else p
    return (
        p.device.type == grad.device.type == "cpu"
        and p.dtype in _FUSED_DTYPES
        and grad.dtype in _FUSED_DTYPES
        and p.is_contiguous()
    )


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
