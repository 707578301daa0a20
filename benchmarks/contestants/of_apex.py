"""NVIDIA apex' FusedLAMB and FusedAdam, for CUDA devices. (PyPI's "apex" is another package.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.groups import groups
from benchmarks.contestants.imports import load
from benchmarks.equations.hyper import BETAS, EPS
from benchmarks.equations.rules import ADAMW, LAMB

_NO_CLIP = 1e9  # its clip of the global norm cannot be turned off: 0 would divide by it
_NOTE = "always measures the global norm of the gradients, as its clip needs it"


def contestants() -> list[Contestant]:
    """Its two."""
    return [
        Contestant("apex FusedLAMB", "apex", "LAMB", LAMB, _lamb, note=_NOTE),
        Contestant("apex FusedAdam", "apex", "AdamW", ADAMW, _adam),
    ]


def _lamb(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    options = {"betas": BETAS, "eps": EPS["LAMB"], "max_grad_norm": _NO_CLIP}
    return load("apex.optimizers").FusedLAMB(groups(parameters), lr=lr, **options)


def _adam(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    options = {"betas": BETAS, "eps": EPS["AdamW"], "adam_w_mode": True}
    return load("apex.optimizers").FusedAdam(groups(parameters), lr=lr, **options)
