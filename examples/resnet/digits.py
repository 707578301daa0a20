"""Scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels, installed with the package."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError

IMAGES = 1797
CLASSES = 10


class LabelledImages(NamedTuple):
    """Images and what they show."""

    images: Tensor
    """[samples, 1, 8, 8] float32, mean 0 and standard deviation 1 over the training part's pixels."""
    labels: Tensor
    """[samples] int64, 0 to 9."""


def load_digits(*sizes: int) -> list[LabelledImages]:
    """The images in the file's order, cut into parts; the first is the training part.

    The file holds the writers' images one after another, and is not shuffled here: the later parts are for the most part
    by other hands than the first.

    Args:
        sizes: Images in each part, 1,797 together.

    Raises:
        ConfigurationError: where scikit-learn is not installed.
        ValueError: where the parts are not 1,797 images together.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ConfigurationError(
            "the digits come with scikit-learn, which is not installed: pip install 'lightning_scale[examples]'."
        ) from None
    if sum(sizes) != IMAGES:
        raise ValueError(f"the parts have {sum(sizes)} images together: give sizes that add up to {IMAGES}.")
    file = datasets.load_digits()
    images = torch.from_numpy(file.images).float().unsqueeze(1)
    labels = torch.from_numpy(file.target).long()
    training = images[: sizes[0]]
    images = (images - training.mean()) / training.std()
    return [
        LabelledImages(*part)
        for part in zip(*(torch.split(each, list(sizes)) for each in (images, labels)), strict=True)
    ]


class Digits(L.LightningDataModule):
    """Scikit-learn's digits: the last ones of the file are held out.

    A batch is a pair: images [samples, 1, 8, 8] float32, labels [samples] int64.

    Args:
        micro_batch_size: Images in one rank's micro-batch; for validation too.
        held_out: The last so many images are for validation, by other writers for the most part.
        seed: Which order.

    Raises:
        ConfigurationError: for an argument out of range, or where scikit-learn is not installed.
    """

    channels, classes = 1, CLASSES

    def __init__(self, micro_batch_size: int = 32, held_out: int = 360, seed: int = 0) -> None:
        super().__init__()
        if micro_batch_size < 1:
            raise ConfigurationError(f"data.micro_batch_size is {micro_batch_size}: write a number of at least 1.")
        if not 1 <= held_out < IMAGES:
            raise ConfigurationError(f"data.held_out is {held_out}: write a number from 1 to {IMAGES - 1}.")
        self.micro_batch_size = micro_batch_size
        self.held_out = held_out
        self.seed = seed

    def setup(self, stage: str) -> None:
        training, validation = load_digits(IMAGES - self.held_out, self.held_out)
        self._training: Dataset[Any] = TensorDataset(*training)
        self._validation: Dataset[Any] = TensorDataset(*validation)

    def train_dataloader(self) -> DataLoader[Any]:
        size = IMAGES - self.held_out
        sampler = ResumableBatchSampler(size, self.micro_batch_size, seed=self.seed)
        return DataLoader(self._training, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._validation, batch_size=self.micro_batch_size)

    def example_sample(self) -> tuple[Tensor, Tensor]:
        """A sample without content, for `lightning-scale plan`."""
        return torch.zeros(1, 8, 8), torch.zeros((), dtype=torch.int64)
