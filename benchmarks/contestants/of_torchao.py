"""torchao's AdamW8bit, which compiles its step with torch.compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS
from benchmarks.equations.rules import ADAMW


def contestants() -> list[Contestant]:
    """Its 8-bit AdamW."""
    note = "8 bits only where a tensor is whole blocks of 256"
    return [Contestant("torchao AdamW8bit", "torchao", "AdamW8bit", ADAMW.in_8_bits(), _adamw, note=note)]


def _adamw(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    return load("torchao.optim").AdamW8bit(groups(parameters), lr=lr, betas=BETAS, eps=EPS["AdamW"])
