"""From a quantity to optimizer steps or samples, exactly."""

from __future__ import annotations

from fractions import Fraction

from lightning_scale.schedule.checks import whole
from lightning_scale.schedule.quantity import Quantity


def to_steps(
    quantity: Quantity,
    *,
    total_steps: int | None = None,
    batch_size: int | None = None,
    samples_per_epoch: int | None = None,
    tokens_per_sample: int | None = None,
    name: str = "quantity",
) -> Fraction:
    """The quantity in optimizer steps.

    Args:
        quantity: What to convert.
        total_steps: Optimizer steps of the whole; needed for "%".
        batch_size: Samples per optimizer step; needed for "samples", "tokens" and "epochs".
        samples_per_epoch: Needed for "epochs".
        tokens_per_sample: Needed for "tokens".
        name: What the quantity is for, to begin the error's sentence with.

    Raises:
        ValueError: where something needed is missing or below 1.
    """
    if quantity.unit == "steps":
        return quantity.value
    if quantity.unit == "%":
        return quantity.value / 100 * _need(name, quantity, "total_steps", total_steps)
    batch = _need(name, quantity, "batch_size", batch_size)
    return (
        to_samples(quantity, samples_per_epoch=samples_per_epoch, tokens_per_sample=tokens_per_sample, name=name)
        / batch
    )


def to_samples(
    quantity: Quantity,
    *,
    total_samples: int | None = None,
    batch_size: int | None = None,
    samples_per_epoch: int | None = None,
    tokens_per_sample: int | None = None,
    name: str = "quantity",
) -> Fraction:
    """The quantity in samples.

    Args:
        quantity: What to convert.
        total_samples: Samples of the whole; needed for "%".
        batch_size: Samples per optimizer step; needed for "steps".
        samples_per_epoch: Needed for "epochs".
        tokens_per_sample: Needed for "tokens".
        name: What the quantity is for, to begin the error's sentence with.

    Raises:
        ValueError: where something needed is missing or below 1.
    """
    if quantity.unit == "samples":
        return quantity.value
    if quantity.unit == "steps":
        return quantity.value * _need(name, quantity, "batch_size", batch_size)
    if quantity.unit == "tokens":
        return quantity.value / _need(name, quantity, "tokens_per_sample", tokens_per_sample)
    if quantity.unit == "epochs":
        return quantity.value * _need(name, quantity, "samples_per_epoch", samples_per_epoch)
    return quantity.value / 100 * _need(name, quantity, "total_samples", total_samples)


def _need(name: str, quantity: Quantity, what: str, value: int | None) -> int:
    if value is None:
        raise ValueError(f'{name} is "{quantity}", which needs {what}: give {what} or write {name} in another unit.')
    return whole(what, value)
