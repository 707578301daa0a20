"""How the kernels are launched, and counted."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.kernels.choice import interpreted
from lightning_scale.optim.kernels.work import Guard

launches = 0
"""Kernels launched by this process so far, for tests and measurements."""


def block() -> int:
    """Elements that a program takes at a time; the interpreter's time is one per block, whatever its size."""
    return 8192 if interpreted() else 1024


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run a kernel in so many programs; none where there is nothing to do.

    It runs where its first argument, a tensor, lies, whichever device is torch's current one: Triton launches on that.

    Numbers that it computes with must be ``float``: of an ``int`` like ``eps=0`` Triton would make another kernel.
    """
    global launches
    if programs:
        device = args[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            # Products and sums rounded one by one: the bits of the plain torch operations, and of the interpreter.
            kernel[(programs,)](*args, enable_fp_fusion=False, **options)
        launches += 1


def guard_arguments(guard: Guard, device: torch.device) -> tuple[Tensor, Tensor, dict[str, bool]]:
    """The finite flag, the clip factor, and which of them count; what does not count is some tensor of the right kind."""
    finite = (
        guard.finite.to(device, torch.int8)
        if guard.finite is not None
        else torch.empty(0, dtype=torch.int8, device=device)
    )
    clip = guard.clip.to(device, torch.float32) if guard.clip is not None else torch.empty(0, device=device)
    return finite, clip, {"TEST": guard.finite is not None, "CLIP": guard.clip is not None}
