"""LEGW: linear-epoch gradual warmup (You et al. 2019, arXiv 1901.08256)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from lightning_scale.schedule.checks import whole
from lightning_scale.schedule.conversion import to_samples
from lightning_scale.schedule.quantity import Quantity
from lightning_scale.schedule.scaling import LRScaling, check_scaling, lr_scale


@dataclass(frozen=True)
class LEGW:
    """Peak rate and warmup of any batch size, from those tuned at one.

    At k times the base batch the peak rate is sqrt(k) times the base rate, and the warmup k times as many epochs. In
    optimizer steps the warmup is therefore the same for every batch.

    Args:
        base_batch_size: Samples per optimizer step that rate and warmup were tuned at.
        base_warmup: The warmup tuned there: "0.3125 epochs", "500 steps", "0.3125%" (of training), also samples or
            tokens.
        lr_scaling: How the peak rate follows the batch; "sqrt" is LEGW's.
        noise_scale: For ``lr_scaling="linear_then_sqrt"`` only; see :func:`lr_scale`.

    Raises:
        ValueError: for a size below 1, a warmup without a unit, or a rule with a noise scale missing or not used.
    """

    base_batch_size: int
    base_warmup: Quantity | str
    lr_scaling: LRScaling = "sqrt"
    noise_scale: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_batch_size", whole("base_batch_size", self.base_batch_size))
        Quantity.parse(self.base_warmup, name="base_warmup")
        check_scaling(self.lr_scaling, self.noise_scale)

    def lr_factor(self, batch_size: int) -> float:
        """The peak rate at ``batch_size``, as a multiple of the one at ``base_batch_size``."""
        return lr_scale(self.lr_scaling, batch_size, self.base_batch_size, self.noise_scale)

    def warmup_steps(
        self,
        *,
        samples_per_epoch: int | None = None,
        total_samples: int | None = None,
        tokens_per_sample: int | None = None,
    ) -> Fraction:
        """Optimizer steps of warmup, the same for every batch size.

        Args:
            samples_per_epoch: Needed where the base warmup is in epochs.
            total_samples: Samples of the whole training; needed where the base warmup is in %.
            tokens_per_sample: Needed where the base warmup is in tokens.

        Raises:
            ValueError: where something needed is missing.
        """
        samples = to_samples(
            Quantity.parse(self.base_warmup),
            total_samples=total_samples,
            batch_size=self.base_batch_size,
            samples_per_epoch=samples_per_epoch,
            tokens_per_sample=tokens_per_sample,
            name="base_warmup",
        )
        return samples / self.base_batch_size

    def warmup_epochs(
        self,
        batch_size: int,
        *,
        samples_per_epoch: int | None = None,
        total_samples: int | None = None,
        tokens_per_sample: int | None = None,
    ) -> Fraction:
        """Epochs of warmup at ``batch_size``: k times those at the base batch.

        Args:
            batch_size: Samples per optimizer step.
            samples_per_epoch: Needed unless the base warmup is in epochs.
            total_samples: Needed where the base warmup is in %.
            tokens_per_sample: Needed where the base warmup is in tokens.

        Raises:
            ValueError: where something needed is missing.
        """
        warmup, batch = Quantity.parse(self.base_warmup), whole("batch_size", batch_size)
        if warmup.unit == "epochs":
            return warmup.value * batch / self.base_batch_size
        steps = self.warmup_steps(total_samples=total_samples, tokens_per_sample=tokens_per_sample)
        return steps * batch / self._whole_of("epochs", "samples_per_epoch", samples_per_epoch)

    def warmup_share(
        self,
        batch_size: int,
        *,
        samples_per_epoch: int | None = None,
        total_samples: int | None = None,
        tokens_per_sample: int | None = None,
    ) -> Fraction:
        """The share of training (1 is all of it) that is warmup at ``batch_size``: k times that at the base batch.

        Args:
            batch_size: Samples per optimizer step.
            samples_per_epoch: Needed where the base warmup is in epochs.
            total_samples: Needed unless the base warmup is in %.
            tokens_per_sample: Needed where the base warmup is in tokens.

        Raises:
            ValueError: where something needed is missing.
        """
        warmup, batch = Quantity.parse(self.base_warmup), whole("batch_size", batch_size)
        if warmup.unit == "%":
            return warmup.value / 100 * batch / self.base_batch_size
        steps = self.warmup_steps(samples_per_epoch=samples_per_epoch, tokens_per_sample=tokens_per_sample)
        return steps * batch / self._whole_of("a share of training", "total_samples", total_samples)

    def _whole_of(self, wanted: str, name: str, value: int | None) -> int:
        if value is None:
            raise ValueError(f'base_warmup is "{self.base_warmup}", and {wanted} of it need {name}: give {name}.')
        return whole(name, value)
