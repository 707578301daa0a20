"""What tests on several ranks share: how a Trainer is told of them, and what it does there, noted."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as L
import torch


def ddp_options() -> dict[str, Any]:
    """Of a Trainer: the ranks that this process was started with, else one process."""
    ranks = int(os.environ["WORLD_SIZE"]) if torch.distributed.is_torchelastic_launched() else 1
    return {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}


class Synced(L.Callback):
    """Notes for every micro-batch whether DDP would synchronize its gradients."""

    def __init__(self) -> None:
        self.synced: list[bool] = []

    def on_before_backward(self, fit: L.Trainer, *args: Any) -> None:
        self.synced.append(bool(getattr(fit.model, "require_backward_grad_sync", True)))
