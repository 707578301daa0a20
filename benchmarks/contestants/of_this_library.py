"""This library's optimizers: every choice of ``fused``, with and without the non-finite test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.contestants.contestant import Contestant, Make, NotAvailable
from benchmarks.contestants.groups import groups
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, TRUST_COEFFICIENT, WEIGHT_DECAY
from benchmarks.equations.rules import ADAMW, LAMB, LARS, LARS_MOMENTUM, SGD, Rule

_LAMB = {"betas": BETAS, "eps": EPS["LAMB"], "weight_decay": WEIGHT_DECAY}
_LARS = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "trust_coefficient": TRUST_COEFFICIENT, "eps": EPS["LARS"]}
_MOMENTUM = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "trust_norm": "momentum"}
_KINDS: list[tuple[str, str, Rule, dict[str, Any]]] = [
    ("LAMB", "LAMB", LAMB, _LAMB),
    ("LARS", "LARS", LARS, _LARS),
    ("LARS on the momentum", "LARS", LARS_MOMENTUM, _MOMENTUM),
    ("LAMB8bit", "LAMB8bit", LAMB.in_8_bits(), _LAMB),
    ("LARS8bit", "LARS8bit", LARS.in_8_bits(), _LARS),
    ("AdamW8bit", "AdamW8bit", ADAMW.in_8_bits(), {"betas": BETAS, "eps": EPS["AdamW"]}),
    ("SGD8bit", "SGD8bit", SGD.in_8_bits(), {"momentum": MOMENTUM}),
]
# What users get unless they write something else; then the others. The test costs the same whatever takes the step.
_FORMS: list[tuple[bool | None, bool]] = [(None, True), (None, False), (False, True), (True, True), (True, False)]


def contestants() -> list[Contestant]:
    """All of them."""
    return [
        Contestant(
            name=f"{name} fused={fused}{'' if tests else ', no test'}",
            package="lightning_scale",
            traffic=name,
            claims=rule,
            make=_make(kind, options | {"fused": fused, "skip_nonfinite": tests}),
            fused=fused,
            tests_finite=tests,
            master=True,
        )
        for name, kind, rule, options in _KINDS
        for fused, tests in _FORMS
    ]


def _make(kind: str, options: dict[str, Any]) -> Make:
    def make(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        import lightning_scale.optim

        own = dict(options)
        if any(p.dtype == torch.bfloat16 for p in parameters):
            own["master_weights"] = True
        grouped = kind in ("AdamW8bit", "SGD8bit")  # which decay every parameter unless its group says not
        try:
            return getattr(lightning_scale.optim, kind)(groups(parameters) if grouped else parameters, lr=lr, **own)
        except ValueError as error:
            if own["fused"]:
                raise NotAvailable(str(error)) from error
            raise

    return make
