"""Which backend takes a parameter's step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Backend
from lightning_scale.optim.backends.device import dense
from lightning_scale.optim.dtensor import local

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What kernels take."""


@cache
def has_triton() -> bool:
    """Whether Triton can be imported (it is, only where it is used)."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def has_cpu_kernels() -> bool:
    """Whether numba can be imported, which takes half a second: asked when the first step on a CPU is taken. If not, one warning
    says what to do.
    """
    try:
        import lightning_scale.optim.backends.cpu.launch  # noqa: F401
    except Exception as error:  # not there, or not for this version of numpy
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    else:
        if os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0"):
            return True
        reason = "NUMBA_DISABLE_JIT is set"
    warnings.warn(
        "Steps on the CPU are taken by plain torch operations, which are many times slower than numba's kernels: numba cannot"
        f" be used here ({reason}). Install it (pip install numba), or write fused=False, for the plain operations without a"
        " warning.",
        stacklevel=2,
    )
    return False


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


def backend_of(fused: bool | None, p: Tensor, in_order: bool, proven: Callable[[], bool]) -> Backend:
    """What takes a parameter's step.

    Args:
        fused: The optimizer's option. ``None``: Triton for CUDA devices where it can be had and takes the parameter, numba's
            kernels for CPUs, the reference otherwise.
        p: The parameter, with its gradient.
        in_order: Whether kernels get row-major copies of what does not lie in order.
        proven: Whether Triton kernels take the reference's step where the parameter is; asked where nobody insists on them.

    Raises:
        ValueError: for ``True`` and a parameter that the Triton kernels do not take.
    """
    if fused is False:
        return Backend.REFERENCE
    reason = _not_for_triton(p)
    if fused and reason is not None:
        raise ValueError(f"fused=True asks for Triton kernels for every parameter, and {reason}, or leave fused out.")
    if fused or (p.device.type == "cuda" and has_triton() and reason is None and proven()):
        return Backend.TRITON
    return Backend.CPU if _for_cpu_kernels(p, in_order) and has_cpu_kernels() else Backend.REFERENCE


def takes_cpu_kernels(tensors: list[Tensor]) -> bool:
    """Whether numba's kernels can read all of these."""
    return (
        all(t.device.type == "cpu" and t.dtype == tensors[0].dtype and _in_memory(t) and dense(t) for t in tensors)
        and tensors[0].dtype in _DTYPES
        and has_cpu_kernels()
    )


def _for_cpu_kernels(p: Tensor, in_order: bool) -> bool:
    grad = local(p.grad) if p.grad is not None else local(p)
    p = local(p)
    return (
        p.device.type == grad.device.type == "cpu"
        and p.dtype in _DTYPES
        and grad.dtype in _DTYPES
        and (in_order or dense(p))
        and _in_memory(p)
        and _in_memory(grad)
    )


def _in_memory(t: Tensor) -> bool:
    """Whether there is an address to read from: a fake or wrapped tensor has none."""
    try:
        return t.data_ptr() != 0 or t.numel() == 0
    except RuntimeError:
        return False


def _not_for_triton(p: Tensor) -> str | None:
    grad = p.grad if p.grad is not None else p
    p = local(p)
    if p.device.type != "cuda" and not (p.device.type == "cpu" and interpreted()):
        return f"one is on {p.device}: move the model to a CUDA device"
    if p.dtype not in _DTYPES or grad.dtype not in _DTYPES:
        return f"one is {p.dtype} with a gradient of {grad.dtype}: use float32, bfloat16 or float16"
    if not dense(p):
        return "one has gaps between its elements or repeats them: use a contiguous parameter"
    return None
