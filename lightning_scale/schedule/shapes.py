"""The shape of the learning rate over one stage: warmup, then decay. Steps count from 1."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

from lightning_scale.schedule.checks import finite, one_of, whole

Decay = Literal["constant", "linear", "cosine", "polynomial"]
DecayFrom = Literal["warmup_end", "stage_start"]


def warmup_factor(step: int, warmup_steps: Fraction | float) -> float:
    """step / warmup_steps up to the warmup's end, 1 after it.

    Args:
        step: The optimizer step, from 1.
        warmup_steps: Length of the warmup in steps, of any fraction; 0 for none.

    Raises:
        ValueError: for a step below 1, or a warmup that is negative or not finite.
    """
    step = whole("step", step)
    finite("warmup_steps", warmup_steps)
    return float(step / Fraction(warmup_steps)) if step < warmup_steps else 1.0


def decay_factor(decay: Decay, progress: Fraction | float, power: float = 1.0) -> float:
    """What is left of the peak rate: 1 at progress 0 and, unless "constant", exactly 0 at progress 1.

    Args:
        decay: "constant" 1; "linear" 1 - p; "cosine" (1 + cos(pi p)) / 2; "polynomial" (1 - p) ** power.
        progress: p, in [0, 1].
        power: Of "polynomial".

    Raises:
        ValueError: for an unknown decay, progress outside [0, 1], or a power that is not above 0.
    """
    one_of("decay", decay, get_args(Decay))
    finite("power", power, above=True)
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}: give a number from 0 to 1.")
    if decay == "constant":
        return 1.0
    if decay == "cosine":
        # sin((1 - p) pi / 2)^2 is the same, and stays exact near p = 1, where 1 + cos(pi p) cancels
        return math.sin(float(1 - Fraction(progress)) * math.pi / 2) ** 2
    left = float(1 - Fraction(progress))
    return left if decay == "linear" else left**power


def rate_factor(
    step: int,
    total_steps: int,
    warmup_steps: Fraction | float = 0,
    decay: Decay = "polynomial",
    power: float = 1.0,
    decay_from: DecayFrom = "warmup_end",
) -> float:
    """The rate of a step as a multiple of the peak rate.

    With t = step, T = total_steps and W = warmup_steps: t / W while t < W, then the decay at progress
    (t - W) / (T - W) ("warmup_end"), or t / T ("stage_start": the decay counts from the stage's start, so the rate
    drops where warmup ends, as in NVIDIA's BERT recipe for LAMB). At t = T progress is 1. A warmup longer than the
    stage is cut off by its end.

    Args:
        step: The optimizer step within the stage, from 1 to total_steps.
        total_steps: Optimizer steps of the stage.
        warmup_steps: Length of the warmup in steps, of any fraction; 0 for none.
        decay: See :func:`decay_factor`.
        power: Of "polynomial".
        decay_from: Where the decay starts to count.

    Raises:
        ValueError: for a step outside the stage, or any argument that is not as described.
    """
    one_of("decay_from", decay_from, get_args(DecayFrom))
    step, total_steps = whole("step", step), whole("total_steps", total_steps)
    if step > total_steps:
        raise ValueError(
            f"step is {step}, beyond the stage's {total_steps} steps: give a step from 1 to {total_steps}."
        )
    finite("warmup_steps", warmup_steps)
    warmup = Fraction(warmup_steps)
    if step < warmup:
        return warmup_factor(step, warmup)
    if step == total_steps:  # also where W = T and (t - W) / (T - W) is 0 / 0
        return decay_factor(decay, 1, power)
    start = warmup if decay_from == "warmup_end" else Fraction(0)
    return decay_factor(decay, (step - start) / (total_steps - start), power)
