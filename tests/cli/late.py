"""A module that builds its layers in ``configure_model`` and notes the rate of every step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from tests.toys import Vectors


class LateNet(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module | None = None
        self.rates: list[float] = []

    def configure_model(self) -> None:
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert self.net is not None
        return (self.net(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        assert self.net is not None
        self.log("val_loss", (self.net(batch[0]) - 1).square().mean())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> Any:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))


class OwnOptimizer(LateNet):
    def configure_optimizers(self) -> Any:
        raise AssertionError("the configuration names an optimizer")


class Inherited(OwnOptimizer):
    """Takes the optimizer from the class above."""


class NoData(Vectors):
    """Its files are not there."""

    def prepare_data(self) -> None:
        raise FileNotFoundError("nobody may ask for these samples")
