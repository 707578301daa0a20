"""Validation by optimizer steps, samples or tokens."""

from __future__ import annotations

import lightning.pytorch as L

from lightning_scale.errors import ConfigurationError
from lightning_scale.schedule import Quantity
from lightning_scale.window import LoopAdapter


class ValidateEvery(L.Callback):
    """Validation after every so many optimizer steps, samples or tokens, always between two steps.

    Lightning's ``val_check_interval`` counts micro-batches: where their number for a step changes, so does the distance
    in steps, and it may validate inside a step. Checkpoints and early stopping that follow a validation follow these.

    Args:
        interval: "500 steps", "1M samples", or with `SequenceLengthStages` "20B tokens", since training began; each time
            that a step reaches or passes a multiple of it.

    Raises:
        ValueError: for an amount of 0, or another unit.
    """

    def __init__(self, interval: str) -> None:
        self.interval = Quantity.parse(interval, ("steps", "samples", "tokens"), "interval")
        if self.interval.value == 0:
            raise ValueError(f'interval is "{interval}": write an amount above 0, such as "500 steps".')

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # There is none where it was given as a time.
        if getattr(trainer, "val_check_interval", None) != 1.0 or trainer.check_val_every_n_epoch not in (None, 1):
            raise ConfigurationError(
                f"ValidateEvery({self.interval}) and the Trainer's val_check_interval or check_val_every_n_epoch both say"
                " when to validate: leave those out."
            )
        LoopAdapter.attach(trainer).validate_every(self.interval)
