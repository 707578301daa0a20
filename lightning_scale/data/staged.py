"""What a DataModule must offer to follow training stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class StageData:
    """The data that a training stage asks for."""

    index: int
    """Which stage, from 0."""
    sequence_length: int
    """Tokens in a sample."""
    micro_batch_size: int | None
    """Samples in one rank's micro-batch; None where the stage leaves that to the data."""
    samples: int
    """Samples (of all ranks) that the stage takes from its start to its end."""
    samples_consumed: int
    """Samples (of all ranks) already trained on in this stage: 0 at its start, more after a resume."""


@runtime_checkable
class StagedDataModule(Protocol):
    """A DataModule (or LightningModule with its own loaders) that can serve one stage after another."""

    def set_stage(self, stage: StageData) -> None:
        """Take note of the stage; called before every ``train_dataloader()`` and ``val_dataloader()`` of the stage."""
