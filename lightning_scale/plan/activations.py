"""The memory of a micro-batch's forward and backward pass, and the largest micro-batch that fits beside a model's states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning.pytorch as L
import torch

from lightning_scale.plan.activation_trace import Computing, peak_bytes
from lightning_scale.plan.configuration import STRATEGIES, Configured
from lightning_scale.plan.dry_run import DryRun
from lightning_scale.plan.formatting import count, size, table
from lightning_scale.plan.memory import Memory, parameter_bytes
from lightning_scale.plan.micro_batch import BatchShapes, Unknown, first_line
from lightning_scale.plan.step_counter import StageInput

_LOW = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Activations:
    """The most bytes that a stage's (or the run's) training step holds at once, as a line over the samples in a micro-batch."""

    stage: int | None
    sequence_length: int | None
    micro_batch_size: int
    """The largest micro-batch of the stage."""
    computing: Computing
    bytes: int
    """The bytes that were traced with that micro-batch."""
    fixed: float
    """The bytes at which the line through twice and four times that micro-batch begins."""
    per_sample: float
    off: float
    """The share of ``bytes`` by which the line misses them; small where memory grows evenly with samples."""

    def largest(self, room: int) -> int:
        """Return the samples in the largest micro-batch that takes no more than ``room`` bytes; 0 where none does."""
        line = max(0, int((room - self.fixed) // self.per_sample))
        size = self.micro_batch_size
        return max(line, size) if self.bytes <= room else min(line, size - 1)


@dataclass(frozen=True)
class Measured:
    """The activations of every stage, as far as they could be traced."""

    by_computing: dict[Computing, list[Activations]]
    left_out: str | None = None
    """Why nothing was traced; None where it was."""


def computing_of(strategy: str, configured: Configured) -> Computing:
    """Return how a strategy computes layers under the Trainer's precision, and FSDP2's own.

    Raises:
        Unknown: for a precision that is none of Lightning's own names.
    """
    precision, gpu = configured.precision, configured.gpu
    low = _LOW.get(precision.split("-")[0])
    if low is None:
        raise Unknown(f"what precision {precision!r} computes in is not known here")
    if strategy.startswith("zero") or not precision.endswith("-mixed"):
        own = parameter_bytes(strategy, precision) == 4
        found = Computing(None if own else low, None, gpu)
    else:
        found = Computing(None, low, gpu)
    gathered = _LOW["bf16"] if strategy.startswith("fsdp2") and configured.param_dtype is not None else None
    return found if gathered == found.parameters else replace(found, param_dtype=gathered)


def measure(found: DryRun, configured: Configured) -> Measured:
    """Trace a training step of every stage as every strategy would compute it.

    Args:
        found: The dry run, which has read samples.
        configured: The precision, and whether the run is meant for GPUs.
    """
    traced: dict[Computing, list[Activations]] = {}
    try:
        for strategy in STRATEGIES:
            computing = computing_of(strategy, configured)
            if computing not in traced:
                traced[computing] = [_of_stage(found, stage_input, computing) for stage_input in found.inputs]
    except Unknown as error:
        return Measured({}, str(error))
    return Measured(traced)


def _of_stage(found: DryRun, stage_input: StageInput, computing: Computing) -> Activations:
    shapes = stage_input.batch
    if not isinstance(shapes, BatchShapes):
        raise shapes or Unknown("no sample was read")
    steps = [step for step in found.schedule.steps if step.stage == stage_input.stage]
    size = max(step.micro_batch_size for step in steps)
    here, double, fourfold = (_peak(found.model, shapes, n * size, computing) for n in (1, 2, 4))
    slope = (fourfold - double) / (2 * size)
    fixed = double - 2 * size * slope
    off = abs(fixed + slope * size - here) / here
    return Activations(stage_input.stage, steps[0].sequence_length, size, computing, here, fixed, slope, off)


def _peak(model: L.LightningModule, shapes: BatchShapes, samples: int, computing: Computing) -> int:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        return peak_bytes(model, shapes, samples, computing)
    except Unknown:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise Unknown(f"training_step looks into its tensors ({first_line(error)}), which are empty here") from error
    except Exception as error:  # the user's training_step, under conditions that it was not written for
        raise Unknown(f"training_step cannot be run on tensors without contents ({first_line(error)})") from error


_EVEN = 0.01
"""How far memory may be from a line over samples before the report says that it does not grow evenly."""


def activations_under(strategy: str, measured: Measured, configured: Configured) -> list[Activations]:
    """Return each stage's activations under a strategy; empty where they are left out."""
    if measured.left_out is not None:
        return []
    return measured.by_computing[computing_of(strategy, configured)]


def largest_micro_batches(
    own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int
) -> dict[str, list[dict[str, Any]]]:
    """Say for each strategy and stage what is left of the device, the largest micro-batch, and whether the run's own fits."""
    found = {}
    for strategy, held in own.items():
        room = device_memory - held.device.total
        found[strategy] = [
            {
                "stage": one.stage,
                "micro_batch_size": one.micro_batch_size,
                "left": room - one.bytes,
                "largest": one.largest(room),
                "fits": one.bytes <= room,
            }
            for one in activations_under(strategy, measured, configured)
        ]
    return found


def micro_batches_too_large(
    own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int
) -> list[str]:
    """Return a sentence for each stage whose micro-batch does not fit beside states that do."""
    strategy = configured.strategy
    if strategy is None or strategy not in own:
        return []
    total = own[strategy].device.total
    return [
        f"The micro-batch{_of(one)} does not fit: {one.micro_batch_size:,} samples take {size(one.bytes)}, and {strategy}"
        f" leaves {size(device_memory - total)} of each device; "
        + (
            f"the largest is {largest:,}."
            if (largest := one.largest(device_memory - total))
            else "nor does one sample."
        )
        for one in activations_under(strategy, measured, configured)
        if total <= device_memory < total + one.bytes
    ]


def activations_json(measured: Measured) -> dict[str, Any]:
    """Return what was traced, or why nothing was, as JSON takes it."""
    lines = [one for stages in measured.by_computing.values() for one in stages]
    return {
        "left_out": measured.left_out,
        "traced": [{**asdict(one), "computing": str(one.computing)} for one in lines],
    }


def activations_text(
    own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int | None
) -> str:
    """Return tables of what was traced, and of the largest micro-batches where the device is known."""
    if measured.left_out is not None:
        return f"Left out: {measured.left_out}."
    lines = [one for stages in measured.by_computing.values() for one in stages]
    head = ["stage", "length", "micro-batch", "computed in", "a micro-batch", "a sample", "and fixed"]
    rows = [
        [
            *(count(number) for number in (one.stage, one.sequence_length, one.micro_batch_size)),
            str(one.computing),
            *(size(number) for number in (one.bytes, one.per_sample, one.fixed)),
        ]
        for one in lines
    ]
    said = ["The most bytes at once in a micro-batch's forward and backward pass:", table([head, *rows], left_from=7)]
    worst = max(lines, key=lambda one: one.off)
    if worst.off > _EVEN:
        said.append(
            f"Memory does not grow evenly with samples (a line misses it by {worst.off:.0%}{_of(worst)}): other micro-batches"
            " than the run's are estimates."
        )
    if device_memory is not None and own:
        said += [
            "The largest micro-batch beside the model's states:",
            _largest_table(own, measured, configured, device_memory),
        ]
    return "\n".join(said)


def _largest_table(own: Mapping[str, Memory], measured: Measured, configured: Configured, device_memory: int) -> str:
    found = largest_micro_batches(own, measured, configured, device_memory)
    stages = next(iter(found.values()))
    head = ["", *("every step" if one["stage"] is None else f"stage {one['stage']}" for one in stages)]
    rows = []
    for strategy, kept in found.items():
        cells = [f"{one['largest']:,}{'' if one['fits'] else ' (less than asked for)'}" for one in kept]
        rows.append([f"{'> ' if strategy == configured.strategy else ''}{strategy}", *cells])
    return table([head, *rows], left_from=len(head))


def _of(one: Activations) -> str:
    return "" if one.stage is None else f" of stage {one.stage}"
