"""torch_optimizer's LAMB and LARS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, RATES, TRUST_COEFFICIENT
from benchmarks.equations.rules import LAMB_OF_ALL, LARS, Rule
from benchmarks.equations.steps import lamb

_PACKAGE = "torch_optimizer"
_NOTE = "vectors have ratios too"
_INSTEAD = Rule(
    "LAMB without bias correction, ‖w‖ at most 10",
    lamb(vectors_adapt=True, correction="none", largest_weight_norm=10),
    RATES["LAMB"],
)


def contestants() -> list[Contestant]:
    """Its two, with the defaults that change the equations left as they are."""
    return [
        Contestant("torch_optimizer Lamb", _PACKAGE, "LAMB", LAMB_OF_ALL, _lamb, instead=_INSTEAD, note=_NOTE),
        Contestant("torch_optimizer LARS", _PACKAGE, "LARS", LARS, _lars, note="lr stays outside the momentum"),
    ]


def _lamb(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    return load(_PACKAGE).Lamb(groups(parameters), lr=lr, betas=BETAS, eps=EPS["LAMB"])


def _lars(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    options = {"momentum": MOMENTUM, "trust_coefficient": TRUST_COEFFICIENT, "eps": EPS["LARS"]}
    return load(_PACKAGE).LARS(groups(parameters), lr=lr, **options)
