"""Modules of other packages, as they are on PyPI, under this package's callbacks: `make clients`."""

from __future__ import annotations

from lightning_scale.alias import alias_pytorch_lightning

alias_pytorch_lightning()  # neuralforecast and darts are built on it
