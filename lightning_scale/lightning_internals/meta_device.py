"""Modules whose parameters have no memory yet."""

from __future__ import annotations

import torch
from lightning.fabric.utilities import init
from torch import nn


def materialize(module: nn.Module, device: torch.device) -> None:
    """Give a module's parameters memory and first values, by its layers' ``reset_parameters``; a warning names those without."""
    init._materialize_distributed_module(module, device)
