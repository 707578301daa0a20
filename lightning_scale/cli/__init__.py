"""The ``lightning-scale`` command: LightningCLI with what large-batch training needs."""

from __future__ import annotations

from lightning_scale.cli.command import ScaleArgumentParser, ScaleCLI, main

__all__ = ["ScaleArgumentParser", "ScaleCLI", "main"]
