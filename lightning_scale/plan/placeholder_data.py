"""Data of a given size that takes a DataModule's place, so that a plan needs no files."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
from torch.utils.data import DataLoader, Dataset

from lightning_scale.data import ResumableBatchSampler, StageData
from lightning_scale.errors import ConfigurationError
from lightning_scale.plan.micro_batch import Unknown


class _RepeatedSample(Dataset[Any]):
    """A data set that gives one sample at every index."""

    def __init__(self, size: int, sample: Any) -> None:
        self._size, self._sample = size, sample

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Any:
        if self._sample is None:
            raise Unknown("the data is not opened, and has no example_sample() that says what a sample looks like")
        return self._sample


class PlaceholderData(L.LightningDataModule):
    """A DataModule with a given number of samples, in the order of a `ResumableBatchSampler`, in stages or not.

    Args:
        samples: The number of samples in an epoch; a stage lasts for all of its own.
        micro_batch_size: The samples in one rank's micro-batch, where no stage says otherwise.
        original: The DataModule that it stands for, which answers what the model asks of it (a vocabulary's size, say).
            Its ``example_sample()``, where it has one, makes a sample of the present stage without opening anything.
    """

    def __init__(self, samples: int, micro_batch_size: int | None, original: Any) -> None:
        super().__init__()
        self._samples, self._micro_batch_size, self._original = samples, micro_batch_size, original
        self._stage: StageData | None = None

    def set_stage(self, stage: StageData) -> None:
        self._stage = stage
        if hasattr(self._original, "set_stage"):
            self._original.set_stage(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        stage = self._stage
        size = (stage.micro_batch_size if stage is not None else None) or self._micro_batch_size
        if size is None:
            raise ConfigurationError(
                "samples_per_epoch stands for the data, and nothing says how large a micro-batch is: give micro_batch_size,"
                " or data with an attribute micro_batch_size or batch_size."
            )
        sampler = ResumableBatchSampler(
            self._samples,
            size,
            shuffle=False,
            epoch_samples=stage.samples if stage is not None else None,
            samples_consumed=stage.samples_consumed if stage is not None else 0,
        )
        make = getattr(self._original, "example_sample", None)
        return DataLoader(_RepeatedSample(self._samples, make() if make is not None else None), batch_sampler=sampler)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._original, name)


def placeholder_for(original: Any, samples: int, micro_batch_size: int | None) -> PlaceholderData:
    """Return data of so many samples; without a ``micro_batch_size`` the original's own is taken."""
    for name in ("micro_batch_size", "batch_size"):
        found = getattr(original, name, None)
        if micro_batch_size is None and isinstance(found, int):
            micro_batch_size = found
    return PlaceholderData(samples, micro_batch_size, original)
