"""GPT-2 with 1.5 billion parameters, as transformers builds it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from torch import Tensor, nn
from torch.nn import functional as F


class GPT2(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        self.net = self.net or GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=48, n_head=25))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        assert self.net is not None
        logits: Any = self.net(batch).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
