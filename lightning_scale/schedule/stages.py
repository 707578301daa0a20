"""A stage of training, with its own sequence length, batch size and learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from lightning_scale.schedule.batch_size import BatchSizeSchedule
from lightning_scale.schedule.checks import finite, one_of, whole
from lightning_scale.schedule.conversion import to_samples, to_steps
from lightning_scale.schedule.quantity import Quantity
from lightning_scale.schedule.shapes import Decay, DecayFrom, decay_factor, rate_factor
from lightning_scale.schedule.step_schedule import parse_schedule

Carry = Literal["keep", "reset"]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        sequence_length: Tokens in a sample.
        steps: Optimizer steps of the stage.
        batch_size: Samples per optimizer step over all ranks and micro-batches: a number, a table such as
            "0:256 1M:512", or a schedule; samples count from the stage's start.
        micro_batch_size: Samples in one rank's micro-batch; ``None`` leaves it to the data module.
        lr: The stage's peak rate; ``None`` takes it from LEGW, or the optimizer.
        warmup: Its length: steps, % (of the stage), samples, tokens or epochs.
        decay: What follows the warmup: "constant", "linear", "cosine" or "polynomial".
        power: Of "polynomial".
        decay_from: The decay counts from "warmup_end" or from "stage_start", see :func:`rate_factor`.
        moments: "reset" zeroes the optimizer's moments where the stage starts.
        bias_correction_step: "reset" lets the optimizer's bias correction count from 1 again where the stage starts.

    Raises:
        ValueError: for sizes below 1, a micro-batch that does not divide a constant batch, a warmup longer than the
            stage (in epochs: when :meth:`warmup_steps` is asked), a power that is not used, or an unknown choice.
    """

    sequence_length: int
    steps: int
    batch_size: int | str | BatchSizeSchedule
    micro_batch_size: int | None = None
    lr: float | None = None
    warmup: str = "0 steps"
    decay: Decay = "polynomial"
    power: float = 1.0
    decay_from: DecayFrom = "warmup_end"
    moments: Carry = "keep"
    bias_correction_step: Carry = "keep"

    def __post_init__(self) -> None:
        whole("sequence_length", self.sequence_length)
        whole("steps", self.steps)
        _check_micro_batch(self.schedule, self.micro_batch_size)
        if self.lr is not None:
            finite("lr", self.lr)
        one_of("decay_from", self.decay_from, get_args(DecayFrom))
        one_of("moments", self.moments, get_args(Carry))
        one_of("bias_correction_step", self.bias_correction_step, get_args(Carry))
        decay_factor(self.decay, 0, self.power)  # checks both
        if self.power != 1 and self.decay != "polynomial":
            raise ValueError(
                f'power is {self.power}, but decay "{self.decay}" does not use it: leave power out, or write decay'
                ' "polynomial".'
            )
        if Quantity.parse(self.warmup, name="warmup").unit != "epochs":
            self.warmup_steps()

    @property
    def schedule(self) -> BatchSizeSchedule:
        """The batch size as a schedule of the samples consumed since the stage's start."""
        return parse_schedule(self.batch_size)

    @property
    def total_samples(self) -> int:
        """Samples that the whole stage consumes."""
        return self.schedule.samples_after(self.steps)

    def warmup_steps(self, samples_per_epoch: int | None = None) -> Fraction:
        """The warmup in optimizer steps.

        Args:
            samples_per_epoch: Needed for a warmup in epochs.

        Raises:
            ValueError: where that is missing, or the warmup is longer than the stage.
        """
        warmup = Quantity.parse(self.warmup, name="warmup")
        if warmup.unit in ("steps", "%"):
            steps = to_steps(warmup, total_steps=self.steps, name="warmup")
        else:
            samples = to_samples(
                warmup, samples_per_epoch=samples_per_epoch, tokens_per_sample=self.sequence_length, name="warmup"
            )
            steps = self.schedule.steps_until(samples)
        if steps > self.steps:
            raise ValueError(
                f'warmup is "{warmup}", longer than the stage\'s {self.steps} steps: write a warmup of at most'
                f' "{self.steps} steps".'
            )
        return steps

    def rate_factor(self, step: int, warmup_steps: Fraction | float | None = None) -> float:
        """The rate of a step as a multiple of the stage's peak rate.

        Args:
            step: The optimizer step within the stage, from 1 to ``steps``.
            warmup_steps: A warmup in place of the stage's own; needed where that is in epochs.

        Raises:
            ValueError: for a step outside the stage.
        """
        warmup = self.warmup_steps() if warmup_steps is None else warmup_steps
        return rate_factor(step, self.steps, warmup, self.decay, self.power, self.decay_from)

    def rate(self, step: int, warmup_steps: Fraction | float | None = None) -> float:
        """The rate of a step: ``lr`` times :meth:`rate_factor`.

        Raises:
            ValueError: where ``lr`` is None, or for a step outside the stage.
        """
        if self.lr is None:
            raise ValueError("the stage has no lr, so its rate is not known here: give the stage an lr.")
        return self.lr * self.rate_factor(step, warmup_steps)


def _check_micro_batch(schedule: BatchSizeSchedule, micro_batch_size: int | None) -> None:
    if micro_batch_size is None:
        return
    micro, (_, size) = whole("micro_batch_size", micro_batch_size), schedule.changes()[0]
    if len(schedule.changes()) == 1 and size % micro:
        below = size - size % micro
        fits = f"{below} or {below + micro}" if below else f"{micro}"
        raise ValueError(
            f"batch_size is {size}, not a multiple of micro_batch_size {micro}: write batch_size {fits}, or another"
            " micro_batch_size."
        )
