"""How many samples an epoch has, for warmups that are given in epochs."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DistributedSampler

from lightning_scale.data import ResumableBatchSampler


def samples_per_epoch(
    loaders: list[Any], micro_batches: float, samples_per_micro_batch: int | None, trained: bool = False
) -> int | None:
    """Samples in one pass over the data, or None where nobody knows.

    Args:
        loaders: The training loaders; the first one's data set counts.
        micro_batches: Micro-batches of one rank in a Lightning epoch, where ``limit_train_batches`` shortens it, else inf.
        samples_per_micro_batch: Samples in one micro-batch of all ranks.
        trained: Those that training takes before it begins a new epoch, which may be less or more than one pass.
    """
    if math.isfinite(micro_batches) and samples_per_micro_batch is not None:
        return int(micro_batches) * samples_per_micro_batch
    loader = loaders[0] if loaders else None
    batch_sampler = getattr(loader, "batch_sampler", None)
    if isinstance(batch_sampler, ResumableBatchSampler):
        return batch_sampler.epoch_samples if trained else batch_sampler.dataset_size
    # The sampler's choice, not the data set: it may take a part, or repeat. A distributed one holds a rank's share.
    sampler = getattr(loader, "sampler", None)
    source: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else sampler
    return len(source) if hasattr(source, "__len__") else None
