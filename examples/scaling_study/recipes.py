"""The optimizers, and how each one's numbers follow the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_scale.optim import LAMB, LARS, LAMB8bit, LARS8bit
from lightning_scale.schedule import LRScaling

_SGD_DECAY = 5e-4
_ADAM_DECAY = 0.01
_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


@dataclass(frozen=True)
class Recipe:
    """An optimizer with its rule for larger batches."""

    name: str
    title: str
    """What the table and the picture call it."""
    middle_rate: float
    """Where the search for the rate at B₀ begins."""
    lr_scaling: LRScaling
    """What the rate is multiplied with at k·B₀."""
    warmup_epochs: float | None
    """Epochs over which the rate climbs from the one of B₀ (Goyal et al.); None for LEGW's warmup."""
    build: Callable[[nn.Module, float, int], Optimizer]
    """Makes the optimizer from the network, the rate at B₀ (the callback scales it) and k."""


def _sgd(network: nn.Module, lr: float, k: int) -> Optimizer:
    return torch.optim.SGD(_groups(network, _SGD_DECAY), lr=lr, momentum=0.9)


def _adamw(network: nn.Module, lr: float, k: int) -> Optimizer:
    """Malladi et al. 2022 (arXiv 2205.10287): 1 - β times k, ε by √k; the rate's √k is the callback's.

    Where that would make β negative (β1 from k = 11 on) it is 0: the average over steps that the rule asks for is shorter
    than one of the large steps.
    """
    beta1, beta2 = (max(0.0, 1 - k * (1 - beta)) for beta in _ADAM_BETAS)
    return torch.optim.AdamW(_groups(network, _ADAM_DECAY), lr=lr, betas=(beta1, beta2), eps=_ADAM_EPS / k**0.5)


def _lars(kind: type[LARS | LARS8bit]) -> Callable[[nn.Module, float, int], Optimizer]:
    """The 2019 form: a layer's step is lr · ‖w‖, so that the rate has a size that suits biases and norms, too."""
    return lambda network, lr, k: kind(
        network.named_parameters(), lr=lr, momentum=0.9, weight_decay=_SGD_DECAY, trust_norm="momentum"
    )


def _lamb(kind: type[LAMB | LAMB8bit]) -> Callable[[nn.Module, float, int], Optimizer]:
    return lambda network, lr, k: kind(network.named_parameters(), lr=lr, weight_decay=_ADAM_DECAY)


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay for biases and norms: what LARS and LAMB do by default."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("sgd", "SGD, linear", 0.08, "linear", 5.0, _sgd),
        Recipe("adamw", "AdamW, √k", 4e-3, "sqrt", None, _adamw),
        Recipe("lars", "LARS + LEGW", 0.02, "sqrt", None, _lars(LARS)),
        Recipe("lamb", "LAMB + LEGW", 1e-2, "sqrt", None, _lamb(LAMB)),
        Recipe("lars8bit", "LARS8bit + LEGW", 0.02, "sqrt", None, _lars(LARS8bit)),
        Recipe("lamb8bit", "LAMB8bit + LEGW", 1e-2, "sqrt", None, _lamb(LAMB8bit)),
    )
}
