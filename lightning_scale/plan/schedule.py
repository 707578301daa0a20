"""A run's optimizer steps, as they are known before it starts: what they add up to, their table, and what to warn of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_scale.plan.formatting import count, table

_TABLE_ROWS = 12
_HEADER = ("step", "samples", "tokens", "rate", "batch", "micro-batches", "micro-batch", "length", "")
_COLUMNS = ("step", "samples", "tokens", "lr", "batch_size", "micro_batches", "micro_batch_size", "sequence_length")

SQRT_SHOWN_TO = 32_768
"""The largest batch that You et al. 2019 (arXiv 1904.00962) show the square-root rule for, BERT and ImageNet."""


class PlannedStep(NamedTuple):
    """One optimizer step."""

    step: int
    """Its number, from 1, over all stages."""
    samples: int
    """The samples of all ranks that are consumed after it."""
    tokens: int | None
    """The tokens in them, where stages say how long a sample is."""
    batch_size: int
    """The samples that it is the mean of, over all ranks and micro-batches."""
    micro_batches: int
    """The number of micro-batches of each rank."""
    micro_batch_size: int
    """The samples in one rank's micro-batch; in the largest, where they differ."""
    sequence_length: int | None
    """The tokens in a sample, where stages say so."""
    lr: float
    """The rate of the optimizer's first parameter group."""
    stage: int | None
    """The stage's number, from 1, where there are stages."""
    epoch: int
    """Lightning's epoch, from 1."""


@dataclass(frozen=True)
class Mark:
    """A place in the run that the table and the picture show."""

    step: int
    """The optimizer step at whose end it lies; 0 for the run's start."""
    text: str


@dataclass(frozen=True)
class Totals:
    """What a run consumes in all."""

    steps: int
    samples: int
    tokens: int | None
    epochs: float | None
    """The passes over the data (of every stage over its own); None where its length is not known."""


@dataclass(frozen=True)
class Warmup:
    """A warmup, with the length of the stage or run that it is part of."""

    stage: int | None
    """The stage's number, from 1; None for a warmup of the run."""
    first_step: int
    """The number of optimizer steps before it."""
    steps: float
    """Its length in optimizer steps, of any fraction."""
    whole: int | None
    """The optimizer steps of its stage; None where it is the run's, or where they are not known."""


@dataclass(frozen=True)
class Rules:
    """The rules that rates and batches follow, as far as warnings and marks need them."""

    world_size: int
    samples_per_epoch: int | None
    legw_base_batch_size: int | None = None
    rate_follows: str = "none"
    """How the rate follows the batch: "none", "sqrt", "linear" or "linear_then_sqrt"."""
    last_size: tuple[int, int] | None = None
    """The last size of a batch that grows, and the samples, over all stages, from which on it applies."""
    warmups: tuple[Warmup, ...] = ()
    notes: tuple[str, ...] = ()
    """The warnings of the training command itself."""


@dataclass(frozen=True)
class Schedule:
    """All optimizer steps of a run, and the rules that they follow."""

    steps: Sequence[PlannedStep]
    rules: Rules
    epochs: float | None

    @property
    def totals(self) -> Totals:
        last = self.steps[-1]
        return Totals(last.step, last.samples, last.tokens, self.epochs)

    @property
    def marks(self) -> list[Mark]:
        """The switches of stages, the ends of warmups, and the end of a batch's growth, in the order of steps."""
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


def schedule_table(schedule: Schedule) -> str:
    """Return a table of the first step, the last, those around every mark, and some at even distances between them."""
    said: dict[int, list[str]] = {}
    for mark in schedule.marks:
        said.setdefault(mark.step + 1, []).append(mark.text)
    steps = schedule.steps
    shown = {0, len(steps) - 1, *(i * (len(steps) - 1) // (_TABLE_ROWS - 1) for i in range(_TABLE_ROWS))}
    for number in said:  # the last step before a mark, and the first after it
        shown |= {min(max(number - 2, 0), len(steps) - 1), min(number - 1, len(steps) - 1)}
    left = len(_COLUMNS)
    rows = [_row(steps[i], said.get(steps[i].step, ())) for i in sorted(shown)]
    if steps[-1].step + 1 in said:
        rows.append(("", *[""] * (left - 1), ", ".join(said[steps[-1].step + 1])))
    return table((_HEADER, *rows), left_from=left)


def totals_line(schedule: Schedule) -> str:
    """Return what the run consumes, as a sentence."""
    totals = schedule.totals
    parts = [f"{totals.steps:,} steps", f"{totals.samples:,} samples"]
    if totals.tokens is not None:
        parts.append(f"{totals.tokens:,} tokens")
    parts.append(f"{totals.epochs:.4g} epochs" if totals.epochs is not None else "epochs not known")
    return f"In all: {', '.join(parts)}, on {schedule.rules.world_size:,} rank{'s' * (schedule.rules.world_size > 1)}."


def schedule_json(schedule: Schedule) -> dict[str, Any]:
    """Return the schedule as JSON takes it: totals, marks, and every step's values in columns."""
    totals = schedule.totals
    return {
        "world_size": schedule.rules.world_size,
        "totals": totals.__dict__,
        "marks": [mark.__dict__ for mark in schedule.marks],
        "steps": {name: [getattr(step, name) for step in schedule.steps] for name in PlannedStep._fields},
    }


def _row(step: PlannedStep, said: Sequence[str]) -> tuple[str, ...]:
    values = [count(getattr(step, name)) for name in _COLUMNS]
    values[_COLUMNS.index("lr")] = f"{step.lr:.4g}"
    return (*values, ", ".join(said))


def schedule_warnings(schedule: Schedule) -> list[str]:
    """Return sentences on warmups, batches and ranks that the user may not have meant; the command's own come last."""
    rules, totals = schedule.rules, schedule.totals
    sizes = {step.batch_size for step in schedule.steps}
    largest = max(sizes)
    said = []
    for warmup in rules.warmups:
        whole = totals.steps if warmup.whole is None else warmup.whole
        if warmup.steps > whole:
            what = "the run" if warmup.stage is None else f"stage {warmup.stage}"
            share = whole / warmup.steps
            said.append(
                f"The warmup takes {warmup.steps:,.6g} steps and {what} has {whole:,}: the rate never reaches its peak, only"
                f" {share:.0%} of it. Shorten the warmup, or train longer."
            )
    if rules.rate_follows in ("sqrt", "linear_then_sqrt") and largest > SQRT_SHOWN_TO:
        said.append(
            f"The batch grows to {largest:,} samples, and the square-root rule for the rate was shown to hold up to 32K (You"
            " et al. 2019, BERT and ImageNet): beyond it, tune the rate."
        )
    base = rules.legw_base_batch_size
    if base is not None and rules.rate_follows != "none":
        # An epoch's end cuts batches; those that are asked for are what the rule was meant for.
        asked = [a.batch_size for a, b in zip(schedule.steps, schedule.steps[1:], strict=False) if a.epoch == b.epoch]
        below = [size for size in asked or sizes if size < base]
        if below:
            said.append(
                f"LEGW is tuned at a batch of {base:,}, and {len(below):,} steps have fewer samples, {min(below):,} at the"
                " least: the rule is there to go up from the batch that was tuned, not down. Tune at the smallest batch."
            )
    if rules.last_size is not None and rules.last_size[1] > totals.samples - schedule.steps[-1].batch_size:
        size, samples = rules.last_size
        said.append(
            f"The batch reaches {size:,} after {samples:,} samples, and training ends after {totals.samples:,}, at a batch of"
            f" {schedule.steps[-1].batch_size:,}: shorten the ramp, or train longer."
        )
    if rules.samples_per_epoch is not None and rules.samples_per_epoch < rules.world_size:
        said.append(
            f"There are {rules.world_size:,} ranks and {rules.samples_per_epoch:,} samples in an epoch: some ranks repeat what"
            " others train on. Use fewer ranks, or more data."
        )
    return [*said, *rules.notes]
