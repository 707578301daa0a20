"""A network whose layers shard unevenly, trained beside its unsharded twin on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.optim import LAMB, LARS

Make = Callable[[Any], Any]


class Network(nn.Module):
    """Layers of 13 and 5 rows, one of a single row (no share for most ranks), a frozen one, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 6))
        self.frozen = nn.Linear(6, 6)
        self.single = nn.Linear(6, 1)
        self.output = nn.Linear(6, 13)
        self.output.weight = self.embedding.weight
        self.frozen.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.frozen(self.layers(self.embedding(tokens)))
        # (Added to all logits alike it would have no gradient but rounding.)
        logits: Tensor = self.output(hidden) + self.single(hidden) * torch.linspace(-1, 1, 13, dtype=hidden.dtype)
        return logits


def network(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups, with names."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [pair for pair in named if "layers" in pair[0]]},
        {"params": [pair for pair in named if "layers" not in pair[0]], "weight_decay": 0.3, "lr": 0.03},
    ]


MAKERS: dict[str, Make] = {
    "LAMB": lambda p: LAMB(p, lr=0.02, weight_decay=0.1, max_grad_norm=0.5),
    "LAMB-plain": lambda p: LAMB(p, lr=0.02, bias_correction=False, exclude_1d=False, skip_nonfinite=False),
    "LAMB-bounds": lambda p: LAMB(p, lr=0.02, trust_ratio_clip=(0.1, 2.0), weight_norm_clip=(0.5, 5.0), maximize=True),
    "LAMB-named": lambda p: LAMB(p, lr=0.02, weight_decay=0.1, exclude=["*embedding.*", "*layers.3.weight"]),
    "LARS": lambda p: LARS(p, lr=2.0, weight_decay=0.1),
    "LARS-outside": lambda p: LARS(p, lr=2.0, nesterov=True, lr_in_momentum=False, max_grad_norm=0.5),
    "LARS-momentum": lambda p: LARS(p, lr=0.02, trust_norm="momentum", weight_decay=0.1),
    "LARS-decayed": lambda p: LARS(
        p,
        lr=0.2,
        weight_decay=0.3,
        trust_norm="decayed_gradient",
        trust_clip="larc",
        dampening=0.2,
        trust_coefficient=0.1,
        max_grad_norm=0.5,
    ),
    "LARS-memoryless": lambda p: LARS(p, lr=2.0, momentum=0.0),
}


def backward(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> None:
    """Gradients of a batch that depends on the step alone, so that all ranks' are the same and their mean is exact."""
    tokens = torch.randint(0, 13, (16,), generator=torch.Generator().manual_seed(step))
    loss = nn.functional.cross_entropy(model(tokens).float(), (tokens * 5 + step) % 13)
    loss.backward()
