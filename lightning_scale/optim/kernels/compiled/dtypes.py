"""Which types a variant of a program is for."""

from __future__ import annotations

import torch
from torch import Tensor

TAKEN = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def variant(weights: list[Tensor], grads: list[Tensor]) -> tuple[torch.dtype, torch.dtype]:
    """The types of a bucket's weights and gradients, of which each has one."""
    return weights[0].dtype, grads[0].dtype


def called(kind: str, types: tuple[torch.dtype, ...]) -> str:
    """A program's name."""
    return "-".join([kind, *(TAKEN[dtype] for dtype in types)])
