"""What a run has consumed, and how many optimizer steps its epochs have: what batch sizes and rates are functions of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.utils.data import DistributedSampler

from lightning_scale.data import ResumableBatchSampler
from lightning_scale.schedule import LastWindow, Quantity, Split
from lightning_scale.window.stages import StageController


@dataclass
class Progress:
    """Samples and tokens of all ranks that the windows so far have consumed, also those of skipped steps."""

    samples: int = 0
    """Over the whole run."""
    tokens: int = 0
    """Tokens in them, where stages say how long a sample is."""
    epoch_start: int = 0
    """`now`, when Lightning's present epoch began."""
    last: int = 0
    """Samples of the last window."""
    stages: StageController | None = None
    """What counts the present stage's own."""

    @property
    def now(self) -> int:
        """Samples consumed, in the present stage where there are stages."""
        return self.stages.samples if self.stages is not None else self.samples

    def add(self, samples: int) -> None:
        """Count a window's samples."""
        self.samples, self.last = self.samples + samples, samples
        if self.stages is not None:
            self.stages.samples += samples
            self.tokens += samples * self.stages.stage.sequence_length

    def passed(self, interval: Quantity, steps: int) -> bool:
        """Whether the last window, after which there were ``steps`` optimizer steps, reached a multiple of ``interval``."""
        if interval.unit == "steps":
            now, before = steps, steps - 1
        elif interval.unit == "samples":
            now, before = self.samples, self.samples - self.last
        else:
            assert self.stages is not None, "checked before training"
            now, before = self.tokens, self.tokens - self.last * self.stages.stage.sequence_length
        return now // interval.value > before // interval.value

    def state_dict(self) -> dict[str, Any]:
        stage = self.stages.state_dict() if self.stages is not None else {}
        return {"samples": self.samples, "tokens": self.tokens, "epoch_start": self.epoch_start, **stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.tokens, self.epoch_start = (state_dict[key] for key in ("samples", "tokens", "epoch_start"))
        if self.stages is not None:
            self.stages.load_state_dict(state_dict)


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


class Epoch(NamedTuple):
    """What one epoch gives."""

    batches: Iterable[tuple[Split, int]]
    """Its batches, or an endless run of them: each kind, and how many of it follow."""
    micro_batches: int
    """Micro-batches of each rank after which it ends."""
    samples: int | None = None
    """Samples in it, where its last micro-batch may be short."""


class Taken(NamedTuple):
    """Optimizer steps of one kind, one after another."""

    batch: Split
    """The batch that is asked for, which an epoch's end may cut."""
    steps: int
    """How many; 0 for micro-batches that are left at an epoch's end and left out."""
    micro_batches: int
    """Micro-batches of each rank in each of the steps."""
    samples: int
    """Samples of all ranks in each of the steps."""


def count_steps(epochs: int, epoch: Callable[[int], Epoch], last_window: LastWindow, fixed_from: int) -> int:
    """Optimizer steps of a run from its first sample on.

    Args:
        epochs: Number of epochs.
        epoch: The epoch that begins after so many samples.
        last_window: Whether a batch that an epoch's end cuts is a step.
        fixed_from: Samples from which on the batch size, and so the steps of an epoch, no longer change.
    """
    steps = samples = 0
    for number in range(epochs):
        taken, consumed = _count_epoch(epoch(samples), last_window)
        if samples >= fixed_from:
            return steps + taken * (epochs - number)
        steps, samples = steps + taken, samples + consumed
    return steps


def _count_epoch(epoch: Epoch, last_window: LastWindow) -> tuple[int, int]:
    """Optimizer steps of one epoch, and samples consumed."""
    steps = samples = 0
    for taken in epoch_steps(epoch, last_window):
        steps, samples = steps + taken.steps, samples + max(taken.steps, 1) * taken.samples
    return steps, samples


def epoch_steps(epoch: Epoch, last_window: LastWindow) -> Iterator[Taken]:
    """What the loop makes of an epoch, in order.

    Args:
        epoch: What the epoch gives.
        last_window: Whether a batch that the epoch's end cuts is a step.
    """
    consumed, left = 0, epoch.micro_batches
    most = math.inf if epoch.samples is None else epoch.samples
    for batch, count in epoch.batches:
        fitting = min(count, left // batch.micro_batches)
        # Only the epoch's last micro-batch may be short: what comes before its window is full.
        short = fitting > 0 and consumed + fitting * batch.batch_size > most
        full = fitting - 1 if short else fitting
        if full:
            yield Taken(batch, full, batch.micro_batches, batch.batch_size)
        consumed, left = consumed + full * batch.batch_size, left - full * batch.micro_batches
        if short:
            yield Taken(batch, 1, batch.micro_batches, int(most - consumed))
            consumed, left = int(most), left - batch.micro_batches
        if fitting < count:  # the epoch ends
            if left > 0:
                samples = min(batch.samples(left), int(min(most, consumed + batch.batch_size)) - consumed)
                yield Taken(batch, int(last_window == "step"), left, samples)
            return
