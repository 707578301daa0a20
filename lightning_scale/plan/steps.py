"""What is known of a run before it starts: its optimizer steps, one by one, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class PlannedStep(NamedTuple):
    """One optimizer step."""

    step: int
    """From 1, over all stages."""
    samples: int
    """Samples of all ranks that were consumed after it."""
    tokens: int | None
    """Tokens in them, where stages say how long a sample is."""
    batch_size: int
    """Samples that it is the mean of, over all ranks and micro-batches."""
    micro_batches: int
    """Of each rank."""
    micro_batch_size: int
    """Samples in one rank's micro-batch; the largest, where they differ."""
    sequence_length: int | None
    """Tokens in a sample, where stages say so."""
    lr: float
    """The rate of the optimizer's first parameter group."""
    stage: int | None
    """From 1, where there are stages."""
    epoch: int
    """Lightning's, from 1."""


@dataclass(frozen=True)
class Mark:
    """A place in the run that is worth a look."""

    step: int
    """It lies at the end of this optimizer step; 0 for the run's start."""
    text: str


@dataclass(frozen=True)
class Totals:
    """What a run consumes."""

    steps: int
    samples: int
    tokens: int | None
    epochs: float | None
    """Passes over the data: of every stage over its own, where there are stages; None where its length is not known."""


@dataclass(frozen=True)
class Warmup:
    """A warmup, and what it is part of."""

    stage: int | None
    """From 1; None for the run's."""
    first_step: int
    """Optimizer steps before it."""
    steps: float
    """Its length."""
    whole: int | None
    """Optimizer steps of its stage, or of the run; None where nobody knows."""


@dataclass(frozen=True)
class Rules:
    """What the rates and batches follow from, as far as warnings need it."""

    world_size: int
    samples_per_epoch: int | None
    legw_base_batch_size: int | None = None
    rate_follows: str = "none"
    """How the rate follows the batch: "none", "sqrt", "linear" or "linear_then_sqrt"."""
    last_size: tuple[int, int] | None = None
    """Of a batch that grows: the last size, and the samples (of all stages before it, too) from which on it applies."""
    warmups: tuple[Warmup, ...] = ()
    notes: tuple[str, ...] = ()
    """What the training command itself warns of."""


@dataclass(frozen=True)
class Schedule:
    """A run's optimizer steps."""

    steps: Sequence[PlannedStep]
    rules: Rules
    epochs: float | None

    @property
    def totals(self) -> Totals:
        last = self.steps[-1]
        return Totals(last.step, last.samples, last.tokens, self.epochs)

    @property
    def marks(self) -> list[Mark]:
        """Stage switches, ends of warmups, and where a growing batch reaches its last size; in the order of steps."""
        end, found = self.steps[-1].step, []
        for before, after in zip(self.steps, self.steps[1:], strict=False):
            if after.stage != before.stage:
                found.append(Mark(before.step, f"stage {after.stage} begins"))
        for warmup in self.rules.warmups:
            stage = f" of stage {warmup.stage}" if warmup.stage is not None and len(self.rules.warmups) > 1 else ""
            at = warmup.first_step + warmup.steps
            if at <= end:
                found.append(Mark(int(at), f"warmup{stage} ends"))
        if self.rules.last_size is not None:
            size, samples = self.rules.last_size
            reached = next((s.step - 1 for s in self.steps if s.samples - s.batch_size >= samples), None)
            if reached is not None:
                found.append(Mark(reached, f"batch reaches {size:,}"))
        return sorted(found, key=lambda mark: mark.step)
