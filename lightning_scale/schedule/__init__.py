"""Pure functions of progress: batch size, sequence length, learning rate. Only the standard library is needed."""

from __future__ import annotations

from lightning_scale.schedule.batch_size import BatchSizeSchedule, ConstantBatchSize
from lightning_scale.schedule.composition import Rate, compose_rate, warmup_of
from lightning_scale.schedule.conversion import to_samples, to_steps
from lightning_scale.schedule.instead_of_decay import InsteadOfDecay
from lightning_scale.schedule.legw import LEGW
from lightning_scale.schedule.quantity import Quantity, Unit, parse_count
from lightning_scale.schedule.ramps import GeometricRamp, LinearRamp
from lightning_scale.schedule.scaling import LRScaling, lr_scale
from lightning_scale.schedule.shapes import Decay, DecayFrom, decay_factor, rate_factor, warmup_factor
from lightning_scale.schedule.split import LastWindow, Split, micro_batches_for, nearest_multiple, nearest_split
from lightning_scale.schedule.stage_plan import StagePlan, StagePosition
from lightning_scale.schedule.stages import Stage
from lightning_scale.schedule.step_schedule import StepSchedule, parse_schedule

__all__ = [
    "LEGW",
    "BatchSizeSchedule",
    "ConstantBatchSize",
    "Decay",
    "DecayFrom",
    "GeometricRamp",
    "InsteadOfDecay",
    "LRScaling",
    "LastWindow",
    "LinearRamp",
    "Quantity",
    "Rate",
    "Split",
    "Stage",
    "StagePlan",
    "StagePosition",
    "StepSchedule",
    "Unit",
    "compose_rate",
    "decay_factor",
    "lr_scale",
    "micro_batches_for",
    "nearest_multiple",
    "nearest_split",
    "parse_count",
    "parse_schedule",
    "rate_factor",
    "to_samples",
    "to_steps",
    "warmup_factor",
    "warmup_of",
]
