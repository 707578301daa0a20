"""Parameter groups as everyone writes them: matrices decay, vectors do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.equations.hyper import WEIGHT_DECAY


def groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Two parameter groups."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
