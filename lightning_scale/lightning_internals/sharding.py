"""What a strategy that shards parameters needs of Lightning."""

from __future__ import annotations

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import init
from torch import nn


def evaluate_without_inference_mode(trainer: L.Trainer) -> None:
    """Let validation, tests and predictions run without gradients, but not in torch's inference mode."""
    loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    for loop in loops:
        loop.inference_mode = False


def materialize(module: nn.Module, device: torch.device) -> None:
    """Give a module's parameters memory and first values, by its layers' ``reset_parameters``; a warning names those without."""
    init._materialize_distributed_module(module, device)
