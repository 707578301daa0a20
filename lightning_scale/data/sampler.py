"""A batch sampler whose order is a function of its seed and of the samples consumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_scale.data import ranks
from lightning_scale.schedule import BatchSizeSchedule, LastWindow, Split, nearest_split
from lightning_scale.schedule.checks import whole


class ResumableBatchSampler(Sampler[list[int]]):
    """Micro-batches of indices for one rank, from an order that needs no saved state.

    The order is an endless run of permutations of the data set, one for each pass; pass ``p`` is drawn from
    ``(seed, p)`` alone. Each batch takes the next samples of it, over all micro-batches and ranks. So a run that has
    consumed ``n`` samples continues at the ``n``-th, with any number of ranks.

    Callbacks that set the batch size tell it the sizes, and it spreads each batch evenly over ranks and as few
    micro-batches as hold it: batches of any size come out exactly, with micro-batches of at most ``micro_batch_size``.
    An epoch's last batch has what is left of the epoch (less than one sample a rank goes to the next epoch), or with
    ``last_window="drop"`` is part of the next epoch. Without such a callback every rank takes full micro-batches, and what
    fills none on every rank goes to the next epoch.

    Pass it as ``DataLoader(dataset, batch_sampler=ResumableBatchSampler(...))``.

    Args:
        dataset_size: Samples in the data set.
        micro_batch_size: Samples in one rank's micro-batch; the largest number, where batches do not divide evenly.
        seed: Which order.
        shuffle: ``False`` takes the samples in the data set's own order in every pass.
        epoch_samples: Samples that all ranks take before the iteration ends, over as many passes as that needs; ``None``
            for the data set's size.
        samples_consumed: Samples of all ranks already trained on: iteration starts there. ``len()`` still counts from
            the epoch's start, as Lightning expects of a loader that continues inside an epoch.
        rank: This rank; ``None`` asks ``torch.distributed``, or 0.
        world_size: Number of ranks; ``None`` asks ``torch.distributed``, or 1.
        positions: Yield ``pass * dataset_size + index`` instead of ``index``, for data sets that draw something anew in
            every pass (masks, crops): ``divmod(position, dataset_size)`` gives both back.

    Raises:
        ValueError: for sizes below 1, or an epoch with fewer samples than one micro-batch of every rank needs.
    """

    def __init__(
        self,
        dataset_size: int,
        micro_batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        epoch_samples: int | None = None,
        samples_consumed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        positions: bool = False,
    ) -> None:
        self.dataset_size = whole("dataset_size", dataset_size)
        self.micro_batch_size = whole("micro_batch_size", micro_batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.epoch_samples = self.dataset_size if epoch_samples is None else whole("epoch_samples", epoch_samples)
        self.samples_consumed = whole("samples_consumed", samples_consumed, 0)
        self.positions = positions
        self._rank, self._world_size = rank, world_size
        self._epoch_start: int | None = None
        self._schedule: BatchSizeSchedule | None = None
        self._last_window: LastWindow = "drop"
        self._measured: tuple[object, int] | None = None
        self._drawn = -1
        if self.epoch_samples < self._stride:
            raise ValueError(
                f"an epoch has {self.epoch_samples} samples, fewer than the {self._stride} that one micro-batch of"
                f" {micro_batch_size} on each of {self.world_size} ranks needs: use a smaller micro-batch or more data."
            )

    @property
    def rank(self) -> int:
        return ranks.rank() if self._rank is None else self._rank

    @property
    def world_size(self) -> int:
        return ranks.world_size() if self._world_size is None else self._world_size

    @property
    def batch_size(self) -> int:
        """The micro-batch's size, under the name that loaders use."""
        return self.micro_batch_size

    @property
    def sampler(self) -> ResumableBatchSampler:
        """Itself: Lightning looks here for what has ``set_epoch``."""
        return self

    @property
    def _stride(self) -> int:
        """Samples in one full micro-batch of every rank."""
        return self.micro_batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Take epoch number ``epoch``, as with torch's DistributedSampler; without effect where `follow` is used."""
        if self._epoch_start is None:
            self.samples_consumed = epoch * self._whole_micro_batches

    def follow(
        self,
        *,
        samples_consumed: int,
        epoch_start: int,
        schedule: BatchSizeSchedule | None = None,
        last_window: LastWindow = "drop",
    ) -> None:
        """Go on at ``samples_consumed``, in an epoch that began at ``epoch_start`` samples.

        The callbacks of this package call it, before each epoch and after a resume.

        Args:
            samples_consumed: Samples of all ranks already trained on.
            epoch_start: The same, where the present epoch began.
            schedule: The batch sizes; ``None`` for one full micro-batch of every rank at a time.
            last_window: Whether what is left at the epoch's end, smaller than the schedule's size, is a batch too
                ("step"), or left for the next epoch ("drop").
        """
        self.samples_consumed, self._epoch_start = samples_consumed, epoch_start
        self._schedule, self._last_window = schedule, last_window

    def batch(self, samples: int) -> Split | None:
        """The batch that begins after ``samples`` consumed samples; None where the epoch has no more."""
        return self._batch(samples, self._epoch_start_now + self.epoch_samples)

    def epoch_batches(self, epoch_start: int) -> Iterator[tuple[Split, int]]:
        """The batches of an epoch that begins after ``epoch_start`` samples: each kind, and how many of it follow."""
        samples, end = epoch_start, epoch_start + self.epoch_samples
        while (split := self._batch(samples, end)) is not None:
            most = None if self._schedule is None else self._schedule.steps_of_one_size(samples, split.batch_size)
            fitting = (end - samples) // split.batch_size
            count = fitting if most is None else max(1, min(most, fitting))
            yield split, count
            samples += count * split.batch_size

    def _batch(self, samples: int, end: int) -> Split | None:
        if self._schedule is None:
            split = Split(self._stride, 1, self.world_size)
        else:
            split = nearest_split(self._schedule.batch_size(samples), self.micro_batch_size, self.world_size)
        left = end - samples
        if split.batch_size <= left:
            return split
        keep = self._last_window == "step" and left > 0
        return Split.of(left, self.micro_batch_size, self.world_size) if keep else None

    def __len__(self) -> int:
        start = self._epoch_start_now
        if self._schedule is None:
            return self.epoch_samples // self._stride
        key = (start, self._schedule, self._last_window)
        if self._measured is None or self._measured[0] != key:  # Lightning asks several times an epoch
            self._measured = key, sum(count * split.micro_batches for split, count in self.epoch_batches(start))
        return self._measured[1]

    def __iter__(self) -> Iterator[list[int]]:
        rank, samples = self.rank, self.samples_consumed
        while (split := self.batch(samples)) is not None:
            for micro_batch in range(split.micro_batches):
                yield self._samples(samples + split.place(micro_batch, rank), split.size(micro_batch, rank))
            samples += split.batch_size

    @property
    def _whole_micro_batches(self) -> int:
        """Samples of an epoch that full micro-batches of all ranks take."""
        return self.epoch_samples // self._stride * self._stride

    @property
    def _epoch_start_now(self) -> int:
        """Samples consumed where the present epoch began."""
        if self._epoch_start is not None:
            return self._epoch_start
        return self.samples_consumed // self._whole_micro_batches * self._whole_micro_batches

    def _samples(self, start: int, count: int) -> list[int]:
        """The data set's indices (or positions) of ``count`` samples of the run, from the ``start``-th on."""
        taken: list[int] = []
        while len(taken) < count:
            passed, place = divmod(start + len(taken), self.dataset_size)
            end = min(place + count - len(taken), self.dataset_size)
            indices = self._order(passed)[place:end].tolist() if self.shuffle else range(place, end)
            taken += [passed * self.dataset_size + index for index in indices] if self.positions else indices
        return taken

    def _order(self, passed: int) -> Tensor:
        """The permutation of one pass; the last one drawn is kept, for it serves many samples."""
        if self._drawn != passed:
            # Hashed, for a sum of seed and pass would give one seed's second order to the next seed's first.
            digest = hashlib.sha256(f"{self.seed}/{passed}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            order = torch.randperm(self.dataset_size, generator=generator)
            self._permutation = order.to(torch.int32) if self.dataset_size < 2**31 else order  # half the memory
            self._drawn = passed
        return self._permutation


def is_resumable(loader: Any) -> bool:
    """Whether a loader's order follows from the samples consumed."""
    return isinstance(getattr(loader, "batch_sampler", None), ResumableBatchSampler)
