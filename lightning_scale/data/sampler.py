"""A batch sampler whose order is a function of its seed and of the samples consumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ResumableBatchSampler(Sampler[list[int]]):
    """Micro-batches of indices for one rank, from an order that needs no saved state.

    The order is an endless run of permutations of the data set, one for each pass; pass ``p`` is drawn from
    ``(seed, p)`` alone. The ranks' micro-batches together take ``world_size * micro_batch_size`` consecutive samples of
    it, rank after rank. So a run that has consumed ``n`` samples continues at the ``n``-th, with any number of ranks.

    Pass it as ``DataLoader(dataset, batch_sampler=ResumableBatchSampler(...))``.

    Args:
        dataset_size: Samples in the data set.
        micro_batch_size: Samples in one rank's micro-batch.
        seed: Which order.
        shuffle: ``False`` takes the samples in the data set's own order in every pass.
        micro_batches: Micro-batches one rank takes before the iteration ends, counted from sample 0, over as many
            passes as that needs; ``None`` for one pass (what does not fill a micro-batch on every rank is left out).
        samples_consumed: Samples of all ranks already trained on: iteration starts there. ``len()`` still counts from
            sample 0, as Lightning expects of a loader that continues inside an epoch.
        rank: This rank; ``None`` asks ``torch.distributed``, or 0.
        world_size: Number of ranks; ``None`` asks ``torch.distributed``, or 1.
        positions: Yield ``pass * dataset_size + index`` instead of ``index``, for data sets that draw something anew in
            every pass (masks, crops): ``divmod(position, dataset_size)`` gives both back.

    Raises:
        ValueError: for sizes below 1, or a data set with fewer samples than one micro-batch of every rank needs.
    """

    def __init__(
        self,
        dataset_size: int,
        micro_batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        micro_batches: int | None = None,
        samples_consumed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        positions: bool = False,
    ) -> None:
        for name, value, least in (
            ("dataset_size", dataset_size, 1),
            ("micro_batch_size", micro_batch_size, 1),
            ("samples_consumed", samples_consumed, 0),
            ("micro_batches", 1 if micro_batches is None else micro_batches, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}: give a whole number of at least {least}.")
        self.dataset_size = dataset_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.micro_batches = micro_batches
        self.samples_consumed = samples_consumed
        self.positions = positions
        self._epoch_start: int | None = None
        self._rank, self._world_size = rank, world_size
        if micro_batches is None and dataset_size < micro_batch_size * self.world_size:
            raise ValueError(
                f"the data set has {dataset_size} samples, fewer than the {micro_batch_size * self.world_size} that one"
                f" micro-batch of {micro_batch_size} on each of {self.world_size} ranks needs: use a smaller micro-batch"
                " or more data."
            )

    @property
    def rank(self) -> int:
        if self._rank is not None:
            return self._rank
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_rank() if distributed else 0

    @property
    def world_size(self) -> int:
        if self._world_size is not None:
            return self._world_size
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_world_size() if distributed else 1

    @property
    def batch_size(self) -> int:
        """The micro-batch's size, under the name that loaders use."""
        return self.micro_batch_size

    @property
    def sampler(self) -> ResumableBatchSampler:
        """Itself: Lightning looks here for what has ``set_epoch``."""
        return self

    def __len__(self) -> int:
        if self.micro_batches is not None:
            return self.micro_batches
        return self.dataset_size // (self.micro_batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Take pass number ``epoch``, as with torch's DistributedSampler; without effect where `follow` is used."""
        if self._epoch_start is None and self.micro_batches is None:
            self.samples_consumed = epoch * len(self) * self.micro_batch_size * self.world_size

    def follow(self, *, samples_consumed: int, epoch_start: int) -> None:
        """Go on at ``samples_consumed``, in an epoch that began at ``epoch_start`` samples and has ``len()`` micro-batches.

        The callbacks of this package call it, before each epoch and after a resume.
        """
        self.samples_consumed, self._epoch_start = samples_consumed, epoch_start

    def __iter__(self) -> Iterator[list[int]]:
        stride = self.micro_batch_size * self.world_size
        taken, length = self.samples_consumed // stride, len(self)
        if self.micro_batches is not None:
            end = length
        elif self._epoch_start is not None:
            end = self._epoch_start // stride + length
        else:
            end = (taken // length + 1) * length
        for number in range(taken, end):
            start = number * stride + self.rank * self.micro_batch_size
            yield [self._sample(position) for position in range(start, start + self.micro_batch_size)]

    def _sample(self, position: int) -> int:
        """The data set's index (or index and pass) of the run's ``position``-th sample."""
        passed, place = divmod(position, self.dataset_size)
        index = self._order(passed)[place] if self.shuffle else place
        return passed * self.dataset_size + index if self.positions else index

    def _order(self, passed: int) -> list[int]:
        """The permutation of one pass; the last one drawn is kept, for it serves many samples."""
        if getattr(self, "_drawn", None) != passed:
            # Hashed, for a sum of seed and pass would give one seed's second order to the next seed's first.
            digest = hashlib.sha256(f"{self.seed}/{passed}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            self._permutation: list[int] = torch.randperm(self.dataset_size, generator=generator).tolist()
            self._drawn = passed
        return self._permutation
