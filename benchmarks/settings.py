"""What a run is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """
    Args:
        parameters: Name of the set of parameters.
        device: "cpu" or "cuda".
        dtype: "float32", or "bf16-master": bfloat16 parameters and gradients with float32 master weights.
        rounds: At most.
        least: Rounds that everyone takes part in.
        seconds: For all steps that count, about.
        threads: On a CPU.
        flush_mib: What is copied before every step, outside of its time, so that caches hold none of its tensors.
        copy_mib: The size of the copy that bandwidths are compared with.
        only: Patterns of names; empty for all.
    """

    parameters: str = "cpu"
    device: str = "cpu"
    dtype: str = "float32"
    rounds: int = 30
    least: int = 3
    seconds: float = 150.0
    threads: int = 2
    flush_mib: int = 0
    copy_mib: int = 256
    only: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of parameters and gradients."""
        return torch.bfloat16 if self.dtype == "bf16-master" else torch.float32
