"""What the rate of the next optimizer step is, for one Trainer: LEGW, stages, and warmups turned into steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from lightning_scale.errors import ConfigurationError
from lightning_scale.schedule import LEGW, BatchSizeSchedule, Rate, StagePlan, compose_rate, warmup_of


@dataclass
class RateRule:
    """Rates as a pure function of progress, once the data is known.

    Args:
        legw: LEGW's rule, or None.
        plan: The stages, or None.
        ramps: Whether a batch-size ramp has a say.
        batch_factor: Its factor for the rate, by the batch size, or None where the rate does not follow the batch.
    """

    legw: LEGW | None = None
    plan: StagePlan | None = None
    ramps: bool = False
    batch_factor: Callable[[int], float] | None = None
    _legw_steps: Fraction | None = None
    _stage_warmup: Fraction | None = None

    @property
    def sources(self) -> list[str]:
        """The callbacks that scale the rate."""
        parts = {"LEGWWarmup": self.legw, "SequenceLengthStages": self.plan, "BatchSizeRamp": self.ramps or None}
        return [name for name, part in parts.items() if part is not None]

    def know_data(self, step: int, samples_per_epoch: int | None, total_samples: int | None) -> None:
        """Turn warmups given in epochs, samples or shares into optimizer steps.

        Args:
            step: Optimizer steps attempted so far (they tell the stage).
            samples_per_epoch: Of the data at hand; None where unknown.
            total_samples: Of the whole run, where there are no stages; None where unknown.

        Raises:
            ConfigurationError: where a warmup needs what is unknown, or is longer than its stage.
        """
        stage = self.plan.at(step).stage if self.plan is not None else None
        try:
            if stage is not None:
                self._stage_warmup = stage.warmup_steps(samples_per_epoch=samples_per_epoch)
            if self.legw is not None and (stage is None or stage.lr is None):
                self._legw_steps = self.legw.warmup_steps(
                    samples_per_epoch=samples_per_epoch,
                    total_samples=total_samples if stage is None else stage.total_samples,
                    tokens_per_sample=stage.sequence_length if stage is not None else None,
                )
        except ValueError as error:
            if samples_per_epoch is None and "samples_per_epoch" in str(error):
                raise ConfigurationError(
                    "a warmup is given in epochs, and the training loader does not say how many samples an epoch has:"
                    " write it in steps or samples."
                ) from None
            raise ConfigurationError(str(error)) from None

    def warmup_steps(self, step: int) -> Fraction | float:
        """Optimizer steps of the warmup after ``step`` steps: the run's, or that of the stage; 0 for none."""
        stage = self.plan.at(step).stage if self.plan is not None else None
        return warmup_of(stage, self._stage_warmup, self._legw_steps)

    def rate(self, step: int, samples: int, batch_size: int | None, schedule: BatchSizeSchedule | None) -> Rate:
        """The rate of an optimizer step.

        Args:
            step: Optimizer steps attempted before it.
            samples: Samples consumed before it, since the stage began where there are stages.
            batch_size: Samples that it is asked to take, over all ranks.
            schedule: Where that comes from, if anywhere.

        Raises:
            ConfigurationError: where LEGW needs the batch size and nobody knows it.
        """
        if self.legw is not None and batch_size is None:
            raise ConfigurationError(
                "LEGWWarmup cannot see the batch size: use a torch DataLoader with batch_size, or add"
                " GradientAccumulation(batch_size=...)."
            )
        return compose_rate(
            step=step + 1,
            batch_size=batch_size or 1,
            plan=self.plan,
            legw=self.legw,
            legw_warmup_steps=self._legw_steps,
            stage_warmup_steps=self._stage_warmup,
            ramp_factor=self.batch_factor(batch_size) if self.batch_factor is not None and batch_size else 1.0,
            decay_factor=schedule.lr_factor(samples) if schedule is not None else 1.0,
        )
