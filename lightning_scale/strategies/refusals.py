"""What no sharding strategy can do, refused before training."""

from __future__ import annotations

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import WeightAveraging

from lightning_scale.errors import ConfigurationError


def refuse_layer_sync_on_cpu(device: torch.device) -> None:
    """Raise a ConfigurationError for ``sync_batchnorm=True`` where torch has no such layer."""
    if device.type == "cpu":
        raise ConfigurationError(
            "sync_batchnorm=True has no effect on CPUs, for torch's SyncBatchNorm runs on GPUs alone: leave it out, or take"
            " layers that normalize each sample by itself (GroupNorm, LayerNorm)."
        )


def refuse_weight_averaging(trainer: L.Trainer, strategy: str) -> None:
    """Raise a ConfigurationError for Lightning's `WeightAveraging`, which copies the module before it is sharded."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            raise ConfigurationError(
                f"{type(callback).__name__} keeps a whole copy of the module, and cannot average what {strategy} shards: train"
                ' under strategy="ddp" with it, or leave it out.'
            )
