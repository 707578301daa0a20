"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[2]
_CPUINFO = Path("/proc/cpuinfo")


def environment(device: torch.device, packages: Iterable[str]) -> dict[str, Any]:
    """Device, processor, versions and commit; None for what is not there."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else cpu_model(),
        "device_type": device.type,
        "cuda": torch.version.cuda if cuda else None,
        "driver_and_clocks": gpu_clocks() if cuda else None,
        "cpu": cpu_model(),
        "avx512": has_avx512(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "triton_interpreter": os.environ.get("TRITON_INTERPRET") == "1",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in sorted({"torch", "triton", *packages})},
        "commit": _commit(),
    }


def cpu_model() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_avx512() -> bool:
    """Whether the processor's flags name AVX-512; False where there are none to be read."""
    return "avx512f" in _cpuinfo("flags").split()


def _cpuinfo(field: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def gpu_clocks() -> str | None:
    """What nvidia-smi says of driver, clocks, temperature and power at this moment."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw"
    return _said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with a plus where files differ from it."""
    commit = _said(["git", "-C", str(_ROOT), "rev-parse", "HEAD"])
    changed = _said(["git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}{'+' if changed else ''}" if commit else None


def _said(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
