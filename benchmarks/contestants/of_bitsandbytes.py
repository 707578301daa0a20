"""bitsandbytes' 8-bit optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant, Make
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, RATES
from benchmarks.equations.rules import ADAMW, LAMB, LARS, SGD, Rule
from benchmarks.equations.steps import adamw, sgd

_PACKAGE = "bitsandbytes"
_ADAM: dict[str, Any] = {"betas": BETAS, "eps": EPS["AdamW"]}
_LAMB: dict[str, Any] = {"betas": BETAS, "eps": EPS["LAMB"]}
_MOMENTUM: dict[str, Any] = {"momentum": MOMENTUM}
_NOTE = "small parameters, in 32 bits, have a bound on their update's norm"
_NO_RATIO = Rule("AdamW", adamw(eps=EPS["LAMB"]), RATES["LAMB"]).where_in_8_bits("AdamW where in 8 bits, with no ratio")
_PLAIN_SGD = Rule("SGD", sgd(), RATES["LARS"]).where_in_8_bits("SGD where in 8 bits, with no ratio")


def contestants() -> list[Contestant]:
    """Four of its 8-bit ones."""
    return [
        Contestant("bitsandbytes AdamW8bit", _PACKAGE, "AdamW8bit", ADAMW.in_8_bits(), _make("AdamW8bit", _ADAM)),
        Contestant("bitsandbytes SGD8bit", _PACKAGE, "SGD8bit", SGD.in_8_bits(), _make("SGD8bit", _MOMENTUM)),
        Contestant(
            "bitsandbytes LAMB8bit",
            _PACKAGE,
            "LAMB8bit",
            LAMB.in_8_bits(),
            _make("LAMB8bit", _LAMB),
            instead=_NO_RATIO,
            note=_NOTE,
        ),
        Contestant(
            "bitsandbytes LARS8bit",
            _PACKAGE,
            "LARS8bit",
            LARS.in_8_bits(),
            _make("LARS8bit", _MOMENTUM),
            instead=_PLAIN_SGD,
            note=_NOTE,
        ),
    ]


def _make(kind: str, options: dict[str, Any]) -> Make:
    def make(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        return getattr(load("bitsandbytes.optim"), kind)(groups(parameters), lr=lr, **options)

    return make
