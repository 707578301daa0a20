"""What a task of the study is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Size = Literal["small", "large"]
"""For a CPU's cores, or for a GPU."""

IGNORED = -100
"""A target that does not count (torch's default ``ignore_index``)."""


class Samples(NamedTuple):
    """Samples in memory."""

    inputs: tuple[Tensor, ...]
    """Each [samples, ...]: what the network is called with."""
    targets: Tensor
    """[samples, ...] int64: the right classes."""


@dataclass(frozen=True)
class TaskData:
    """A task's samples."""

    training: Samples
    """All passes one after another, where they differ (masks); otherwise one pass."""
    training_size: int
    """Samples in one pass."""
    tuning: Samples
    """Held out; the rates are chosen by them."""
    test: Samples
    """Held out; nothing is chosen by them."""
    classes: int

    @property
    def guess(self) -> float:
        """The accuracy, on the test samples, of always answering their most frequent class."""
        targets = self.test.targets[self.test.targets != IGNORED]
        return float(targets.bincount().max() / targets.numel())


@dataclass(frozen=True)
class Task:
    """Something to learn."""

    name: str
    title: str
    """What the table and the picture call it."""
    base_batch_size: int
    """B₀, where rates are tuned."""
    epochs: int
    """Passes over the training samples, the same for every batch."""
    load: Callable[[Path], TaskData]
    """Reads the samples; what needs to be made for it once lies in the folder."""
    network: Callable[[], nn.Module]
    """Makes the network with random weights; called with a batch's inputs it gives logits [..., classes]."""


class MemoryDataset(Dataset[Any]):
    """Samples for a DataLoader, a whole batch at a time (one by one takes longer than the networks here).

    Positions (``pass · size + index``) beyond the samples begin again at the first one.

    Args:
        samples: In memory.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples.targets)

    def __getitems__(self, positions: list[int]) -> Samples:
        which = torch.tensor(positions) % len(self)
        return Samples(tuple(each[which] for each in self.samples.inputs), self.samples.targets[which])
