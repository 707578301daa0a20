"""Who takes part: this library's optimizers, and everyone else's that is installed."""

from __future__ import annotations

from benchmarks.contestants import (
    of_apex,
    of_bitsandbytes,
    of_deepspeed,
    of_pytorch_optimizer,
    of_this_library,
    of_timm,
    of_torch,
    of_torch_optimizer,
    of_torchao,
)
from benchmarks.contestants.contestant import Contestant

_PACKAGES = (
    of_torch,
    of_this_library,
    of_timm,
    of_torch_optimizer,
    of_pytorch_optimizer,
    of_bitsandbytes,
    of_torchao,
    of_apex,
    of_deepspeed,
)


def everyone() -> list[Contestant]:
    """All contestants, torch's first."""
    return [contestant for package in _PACKAGES for contestant in package.contestants()]
