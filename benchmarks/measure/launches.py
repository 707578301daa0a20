"""How many kernels a step launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# What the profiler shows on a device's time line beside kernels: copies, fills, and ranges that have a name.
_NO_KERNELS = ("Memcpy", "Memset", "Optimizer.", "ProfilerStep", "Torch-Compiled", "##")


def kernels(step: Callable[[], object], device: torch.device) -> int | None:
    """Kernels that a step runs on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize(device)
    events: Any = seen.events()
    return len([e for e in events if e.device_type.name == "CUDA" and _is_kernel(e)])


def _is_kernel(event: Any) -> bool:
    return not event.name.startswith(_NO_KERNELS) and not getattr(event, "is_user_annotation", False)


def triton_launches(step: Callable[[], object]) -> int:
    """Launches of this library's Triton kernels in a step, by its own count."""
    try:
        from lightning_scale.optim.kernels.fused import launch
    except ImportError:  # no Triton: nothing to count
        step()
        return 0
    before = launch.launches
    step()
    return launch.launches - before
