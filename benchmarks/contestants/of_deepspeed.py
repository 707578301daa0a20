"""DeepSpeed's FusedLamb, for CUDA devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant, NotAvailable
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS, RATES
from benchmarks.equations.rules import LAMB_OF_ALL, Rule
from benchmarks.equations.steps import lamb

_INSTEAD = Rule("LAMB with its bias correction on the rate", lamb(vectors_adapt=True, correction="rate"), RATES["LAMB"])


def contestants() -> list[Contestant]:
    """Its LAMB."""
    note = "vectors have ratios too; its bounds on the ratio (0.01 and 10 unless told) are wide open"
    return [Contestant("DeepSpeed FusedLamb", "deepspeed", "LAMB", LAMB_OF_ALL, _lamb, instead=_INSTEAD, note=note)]


def _lamb(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    options = {"betas": BETAS, "eps": EPS["LAMB"], "max_coeff": 1e9, "min_coeff": 0.0}
    if load("deepspeed.accelerator").get_accelerator().device_name() == "cpu":
        raise NotAvailable("is for CUDA devices")
    return load("deepspeed.ops.lamb").FusedLamb(groups(parameters), lr=lr, **options)
