"""What tests on several ranks share: how a Trainer is told of them, and what it does there, noted."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch


def ddp_options() -> dict[str, Any]:
    """Of a Trainer: two ranks in a process that `run_ranks` has started, else one."""
    world = torch.distributed.is_torchelastic_launched()
    return {"devices": 2, "strategy": "ddp"} if world else {}


class Synced(L.Callback):
    """Notes for every micro-batch whether DDP would synchronize its gradients."""

    def __init__(self) -> None:
        self.synced: list[bool] = []

    def on_before_backward(self, fit: L.Trainer, *args: Any) -> None:
        self.synced.append(bool(getattr(fit.model, "require_backward_grad_sync", True)))
