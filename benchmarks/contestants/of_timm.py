"""timm's LAMB and LARS: their files alone where timm as a whole cannot be imported, for want of torchvision say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load_file
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, TRUST_COEFFICIENT
from benchmarks.equations.rules import LAMB, LARS

_NOTE = "its clip of the global norm (to 1 unless told) is off; what is not decayed has no ratio"


def contestants() -> list[Contestant]:
    """Its two."""
    return [
        Contestant("timm Lamb", "timm", "LAMB", LAMB, _lamb, note=_NOTE),
        Contestant("timm Lars", "timm", "LARS", LARS, _lars, note="lr stays outside the momentum"),
    ]


def _lamb(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    kind = load_file("timm.optim.lamb").Lamb
    return kind(groups(parameters), lr=lr, betas=BETAS, eps=EPS["LAMB"], max_grad_norm=None)


def _lars(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    kind = load_file("timm.optim.lars").Lars
    options = {"momentum": MOMENTUM, "trust_coeff": TRUST_COEFFICIENT, "eps": EPS["LARS"]}
    return kind(groups(parameters), lr=lr, **options)
