"""How many samples an epoch has, for warmups that are given in epochs."""

from __future__ import annotations

import math
from typing import Any


def samples_per_epoch(loaders: list[Any], micro_batches: float, samples_per_micro_batch: int | None) -> int | None:
    """Samples in one pass over the data, or None where nobody knows.

    Args:
        loaders: The training loaders; the first one's data set counts.
        micro_batches: Micro-batches of one rank in a Lightning epoch, where ``limit_train_batches`` shortens it, else inf.
        samples_per_micro_batch: Samples in one micro-batch of all ranks.
    """
    if math.isfinite(micro_batches) and samples_per_micro_batch is not None:
        return int(micro_batches) * samples_per_micro_batch
    dataset = getattr(loaders[0], "dataset", None) if loaders else None
    return len(dataset) if hasattr(dataset, "__len__") else None  # type: ignore[arg-type]
