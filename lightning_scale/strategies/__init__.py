"""Lightning strategies under which a step is the step of the unsharded parameters."""

from __future__ import annotations

from lightning_scale.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy"]
