"""This library's optimizers, as its registry has them: every choice of ``fused``, with and without the non-finite test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.contestants.contestant import Contestant, Make, NotAvailable
from benchmarks.contestants.groups import groups
from benchmarks.equations.hyper import BETAS, EPS, MOMENTUM, TRUST_COEFFICIENT, WEIGHT_DECAY
from benchmarks.equations.rules import ADAMW, LAMB, LARS, LARS_MOMENTUM, SGD, Rule
from benchmarks.rows import ROWS
from lightning_scale.optim.layerwise import LayerwiseOptimizer
from lightning_scale.optim.registry import Entry

# By algorithm and form: the equation that is claimed, and the numbers that it has.
_CLAIMS: dict[tuple[str, str], tuple[Rule, dict[str, Any]]] = {
    ("lamb", ""): (LAMB, {"betas": BETAS, "eps": EPS["LAMB"]}),
    ("lars", ""): (LARS, {"momentum": MOMENTUM, "trust_coefficient": TRUST_COEFFICIENT, "eps": EPS["LARS"]}),
    ("lars", "momentum"): (LARS_MOMENTUM, {"momentum": MOMENTUM}),
    ("adamw", ""): (ADAMW, {"betas": BETAS, "eps": EPS["AdamW"]}),
    ("sgd", ""): (SGD, {"momentum": MOMENTUM}),
}
# What users get unless they write something else (None: Triton's kernels on CUDA devices, numba's on CPUs); then the reference
# in plain torch (False), and Triton's kernels or an error (True). The test costs the same whatever takes the step.
_FUSED: list[tuple[bool | None, bool]] = [(None, True), (None, False), (False, True), (True, True), (True, False)]


def contestants() -> list[Contestant]:
    """All of them."""
    return [
        Contestant(
            name=f"{name} fused={fused}{'' if tests else ', no test'}",
            package="lightning_scale",
            traffic=name,
            claims=_rule(entry, form),
            make=_make(entry, form, fused=fused, skip_nonfinite=tests),
            fused=fused,
            tests_finite=tests,
            master=True,
        )
        for name, (entry, form) in ROWS.items()
        for fused, tests in _FUSED
    ]


def _rule(entry: Entry, form: str) -> Rule:
    rule, _ = _CLAIMS[entry.algorithm, form]
    return rule.in_8_bits() if entry.eight_bit else rule


def _make(entry: Entry, form: str, **asked: Any) -> Make:
    _, numbers = _CLAIMS[entry.algorithm, form]

    def make(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        own = entry.every_form()[form] | numbers | asked | {"lr": lr}
        if any(p.dtype == torch.bfloat16 for p in parameters):
            own["master_weights"] = True
        # What is not layer-wise decays every parameter unless its group says not.
        layerwise = issubclass(entry.kind, LayerwiseOptimizer)
        kind: Any = entry.kind
        try:
            return kind(parameters, weight_decay=WEIGHT_DECAY, **own) if layerwise else kind(groups(parameters), **own)
        except ValueError as error:
            if own["fused"]:
                raise NotAvailable(str(error)) from error
            raise

    return make
