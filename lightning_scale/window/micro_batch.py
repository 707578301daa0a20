"""What one micro-batch is in the step that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_scale.window.items import Items


@dataclass(frozen=True)
class MicroBatch:
    """One rank's micro-batch, between its loss and its backward pass."""

    samples: int
    """That it holds."""
    items: Items
    """That its loss is the mean of: samples, unless ``training_step`` says otherwise."""
    weight: Items
    """What its gradient is multiplied with before it is added to those of the others."""
