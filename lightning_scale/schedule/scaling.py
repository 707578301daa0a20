"""How the learning rate follows the batch size."""

from __future__ import annotations

import math
from typing import Literal, get_args

from lightning_scale.schedule.checks import finite, one_of, whole

LRScaling = Literal["none", "linear", "sqrt", "linear_then_sqrt"]


def check_scaling(rule: LRScaling, noise_scale: float | None) -> None:
    """Raises ValueError unless the rule is known and has a ``noise_scale`` exactly where it needs one."""
    one_of("lr_scaling", rule, get_args(LRScaling))
    if rule != "linear_then_sqrt":
        if noise_scale is not None:
            raise ValueError(
                f'noise_scale is {noise_scale!r}, but lr_scaling "{rule}" does not use it: leave noise_scale out, or'
                ' write lr_scaling "linear_then_sqrt".'
            )
    elif noise_scale is None:
        raise ValueError(
            'lr_scaling "linear_then_sqrt" needs noise_scale, the batch size up to which the rate grows linearly: give'
            ' noise_scale, or write lr_scaling "sqrt".'
        )
    else:
        finite("noise_scale", noise_scale, above=True)


def lr_scale(rule: LRScaling, batch_size: int, base_batch_size: int, noise_scale: float | None = None) -> float:
    """What the rate tuned at ``base_batch_size`` is multiplied with at ``batch_size``.

    With k = batch_size / base_batch_size: "none" is 1; "linear" is k (Goyal et al. 2017, arXiv 1706.02677); "sqrt" is
    the square root of k (Krizhevsky 2014, arXiv 1404.5997; LEGW). "linear_then_sqrt" is f(batch_size) /
    f(base_batch_size) with f(B) = B up to the noise scale and sqrt(noise_scale * B) beyond it, continuous there: larger
    batches gain linearly only up to the gradient's noise scale (McCandlish et al. 2018, arXiv 1812.06162); the square
    root beyond it is this rule's choice, where the paper's rate for plain SGD levels off.

    Args:
        rule: Which rule.
        batch_size: Samples per optimizer step now.
        base_batch_size: Samples per optimizer step that the rate was tuned at.
        noise_scale: In samples; for "linear_then_sqrt" only, and needed there.

    Raises:
        ValueError: for an unknown rule, sizes below 1, or a noise scale that is missing, not used or not above 0.
    """
    check_scaling(rule, noise_scale)
    new, base = whole("batch_size", batch_size), whole("base_batch_size", base_batch_size)
    if rule == "none":
        return 1.0
    if rule == "linear":
        return new / base
    if noise_scale is None or min(new, base) > noise_scale:
        return math.sqrt(new / base)
    if max(new, base) <= noise_scale:
        return new / base
    if new > base:
        return math.sqrt(noise_scale * new) / base
    return new / math.sqrt(noise_scale * base)
