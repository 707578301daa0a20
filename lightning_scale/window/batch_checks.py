"""Batch sizes that a loader cannot give, found before training."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch.utilities import rank_zero_warn

from lightning_scale.errors import ConfigurationError
from lightning_scale.schedule import BatchSizeSchedule, ConstantBatchSize, LastWindow, micro_batches_for


def check_sizes(
    schedule: BatchSizeSchedule,
    owner: str,
    micro_batch_size: int,
    world_size: int,
    *,
    exact: bool,
    possible: Callable[[int], int],
) -> None:
    """Refuse sizes that cannot be made of micro-batches, and say of those that are rounded.

    Args:
        schedule: The sizes.
        owner: The callback that asks for them.
        micro_batch_size: Samples in one rank's micro-batch, at most.
        world_size: Number of ranks.
        exact: Whether the loader makes smaller micro-batches where they are needed.
        possible: The nearest size that the loader can give.

    Raises:
        ConfigurationError: for a fixed size that full micro-batches do not make up, and sizes that are too small.
    """
    if isinstance(schedule, ConstantBatchSize):
        try:
            micro_batches_for(schedule.size, micro_batch_size, world_size)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
    sizes = [size for _, size in schedule.changes()]
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    least = world_size if exact else world_size * micro_batch_size
    if min(sizes) < least:
        needed = "one sample" if exact else f"one micro-batch of {micro_batch_size}"
        advice = "fewer ranks" if exact else "smaller micro-batches, fewer ranks, a ResumableBatchSampler"
        raise ConfigurationError(
            f"{owner} asks for a batch of {min(sizes)} samples, fewer than {needed} on each of {ranks}: use {advice}, or"
            f" sizes of at least {least}."
        )
    rounded = [size for size in sizes if possible(size) != size]
    if rounded:
        rank_zero_warn(
            f"{len(rounded)} of the {len(sizes)} batch sizes of {owner} cannot be made of"
            f" {'' if exact else 'full '}micro-batches of {micro_batch_size} on {ranks} and are rounded to the nearest"
            f" that can ({rounded[0]} to {possible(rounded[0])}, for example); the sizes logged are the true ones."
            + ("" if exact else " lightning_scale.data.ResumableBatchSampler gives them exactly.")
        )


def check_epoch_holds(batch_size: int, epoch_samples: float, last_window: LastWindow) -> None:
    """A batch larger than an epoch: an error where it would never be stepped on, else a warning."""
    if epoch_samples >= batch_size:
        return
    said = f"a batch of {batch_size} samples is larger than an epoch, which has {epoch_samples:.0f}"
    if last_window == "drop":
        raise ConfigurationError(
            f'{said}, which last_window="drop" leaves out, so that no step would ever be taken: use a smaller batch_size,'
            " or more data."
        )
    rank_zero_warn(f"{said}: steps will be on fewer samples than asked. Use a smaller batch_size, or more data.")
