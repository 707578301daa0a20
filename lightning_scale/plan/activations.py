"""The memory of a micro-batch's forward and backward pass, and the largest micro-batch that fits beside a model's states."""

from __future__ import annotations

from dataclasses import dataclass, replace

import lightning.pytorch as L
import torch

from lightning_scale.plan.configured import Configured
from lightning_scale.plan.director import Fed
from lightning_scale.plan.dry_run import Rehearsed
from lightning_scale.plan.memory import STRATEGIES, parameter_bytes
from lightning_scale.plan.micro_batch import BatchShapes, Unknown, first_line
from lightning_scale.plan.trace import Computing, peak_bytes

_LOW = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Activations:
    """Of one stage, or of a run without stages: the most bytes at once, as a line over the samples in a micro-batch."""

    stage: int | None
    sequence_length: int | None
    micro_batch_size: int
    """The largest of the stage."""
    computing: Computing
    bytes: int
    """At that micro-batch, traced."""
    fixed: float
    """Where the line through twice and four times that micro-batch begins."""
    per_sample: float
    off: float
    """By what share of ``bytes`` the line misses them; small where memory grows evenly with samples."""

    def largest(self, room: int) -> int:
        """Samples in the largest micro-batch whose activations take no more than ``room`` bytes; 0 where none does."""
        line = max(0, int((room - self.fixed) // self.per_sample))
        size = self.micro_batch_size
        return max(line, size) if self.bytes <= room else min(line, size - 1)


@dataclass(frozen=True)
class Measured:
    """Activations of every stage, as far as they could be traced."""

    by_computing: dict[Computing, list[Activations]]
    left_out: str | None = None
    """Why there are none."""


def computing_of(strategy: str, configured: Configured) -> Computing:
    """How a strategy's layers are computed under the Trainer's precision, and FSDP2's own.

    Raises:
        Unknown: for a precision of its own kind.
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


def measure(found: Rehearsed, configured: Configured) -> Measured:
    """Trace a training step of every stage as every strategy would compute it.

    Args:
        found: The run, its samples read.
        configured: The precision, and whether it runs on GPUs.
    """
    traced: dict[Computing, list[Activations]] = {}
    try:
        for strategy in STRATEGIES:
            computing = computing_of(strategy, configured)
            if computing not in traced:
                traced[computing] = [_of_stage(found, fed, computing) for fed in found.fed]
    except Unknown as error:
        return Measured({}, str(error))
    return Measured(traced)


def _of_stage(found: Rehearsed, fed: Fed, computing: Computing) -> Activations:
    shapes = fed.batch
    if not isinstance(shapes, BatchShapes):
        raise shapes or Unknown("no sample was read")
    steps = [step for step in found.schedule.steps if step.stage == fed.stage]
    size = max(step.micro_batch_size for step in steps)
    here, double, fourfold = (_peak(found.model, shapes, n * size, computing) for n in (1, 2, 4))
    slope = (fourfold - double) / (2 * size)
    fixed = double - 2 * size * slope
    off = abs(fixed + slope * size - here) / here
    return Activations(fed.stage, steps[0].sequence_length, size, computing, here, fixed, slope, off)


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
