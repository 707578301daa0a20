"""torch's own: the yardstick, fused AdamW, among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.contestants.contestant import Contestant, Make
from benchmarks.contestants.groups import groups
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM
from benchmarks.equations.rules import ADAMW, SGD

BASELINE = "torch AdamW fused"


def contestants() -> list[Contestant]:
    """AdamW and SGD, fused and foreach."""
    return [
        Contestant(BASELINE, "torch", "AdamW", ADAMW, _adamw(fused=True)),
        Contestant("torch AdamW foreach", "torch", "AdamW", ADAMW, _adamw(foreach=True)),
        Contestant("torch SGD fused", "torch", "SGD", SGD, _sgd(fused=True)),
        Contestant("torch SGD foreach", "torch", "SGD", SGD, _sgd(foreach=True)),
    ]


def _adamw(**options: Any) -> Make:
    def make(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        return torch.optim.AdamW(groups(parameters), lr=lr, betas=BETAS, eps=EPS["AdamW"], **options)

    return make


def _sgd(**options: Any) -> Make:
    def make(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        return torch.optim.SGD(groups(parameters), lr=lr, momentum=MOMENTUM, **options)

    return make
