"""Which implementation takes a parameter's step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

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


def runs_compiled(fused: bool | None, parameters: Iterable[Tensor]) -> bool:
    """Whether steps on CPU tensors are taken by compiled kernels; `compiled_takes` says which tensors' steps.

    Args:
        fused: The optimizer's option.
        parameters: All of the optimizer's.
    """
    if fused is not None or torch.compiler.is_compiling():  # inside a user's own graph everything must be traceable
        return False
    return sum(p.numel() for p in parameters if p.device.type == "cpu" and p.dtype in _FUSED_DTYPES) >= COMPILED_FROM


def compiled_takes(p: Tensor) -> bool:
    """Whether the compiled kernels take a parameter, with its gradient."""
    grad = p.grad if p.grad is not None else p
    return (
        p.device.type == grad.device.type == "cpu"
        and p.dtype in _FUSED_DTYPES
        and grad.dtype in _FUSED_DTYPES
        and p.is_contiguous()
    )


def never(p: Tensor) -> bool:
    """No parameter."""
    return False


def positive_in_float32(value: float) -> bool:
    """Whether a number is above 0 as the kernels see it: with an ε that is not, padding would be 0/0."""
    return value > 2.0**-126
