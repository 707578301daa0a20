"""What a step launches, and how many kernels were compiled for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# What the profiler shows on a device's time line beside what the device does: ranges that have a name.
_RANGES = ("Optimizer.", "ProfilerStep", "Torch-Compiled", "##")
_NO_KERNELS = ("Memcpy", "Memset")


def launched(step: Callable[[], object], device: torch.device) -> list[Any] | None:
    """The profiler's events of all kernels, copies and fills that a step runs on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize(device)
    events: Any = seen.events()
    return [e for e in events if e.device_type.name == "CUDA" and not _is_range(e)]


def kernels(step: Callable[[], object], device: torch.device) -> int | None:
    """Kernels that a step runs on a CUDA device; None elsewhere."""
    events = launched(step, device)
    return None if events is None else len([e for e in events if not e.name.startswith(_NO_KERNELS)])


def _is_range(event: Any) -> bool:
    return event.name.startswith(_RANGES) or getattr(event, "is_user_annotation", False)


def triton_launches(step: Callable[[], object]) -> int:
    """Launches of this library's Triton kernels in a step, by its own count."""
    try:
        from lightning_scale.optim.backends.triton import launch
    except ImportError:  # no Triton: nothing to count
        step()
        return 0
    before = launch.launches
    step()
    return launch.launches - before


def compiled_kernels() -> Counter[str]:
    """How many forms of each of this library's Triton kernels this process has compiled so far, or found compiled."""
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:
        return Counter()
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("lightning_scale.optim.")]
    functions = {id(f): f for module in modules for f in vars(module).values() if isinstance(f, JITFunction)}
    forms = {f"{f.fn.__module__.rpartition('.')[2]}.{f.fn.__name__}": _forms(f) for f in functions.values()}
    return Counter({name: number for name, number in forms.items() if number})


def _forms(function: Any) -> int:
    """Triton 3.2 keeps the compiled forms of a device in a dict; later ones in the first place of a tuple."""
    devices = function.device_caches if hasattr(function, "device_caches") else function.cache
    return sum(len(known[0] if isinstance(known, tuple) else known) for known in devices.values())
