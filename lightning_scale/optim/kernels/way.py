"""The ways to compute a step."""

from __future__ import annotations

from enum import Enum


class Way(Enum):
    """Which implementation takes a bucket's step. The plain one is the truth that the others are held to."""

    PLAIN = "plain torch operations"
    TRITON = "Triton kernels"
    COMPILED = "torch.compile for CPUs"
