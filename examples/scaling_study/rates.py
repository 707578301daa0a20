"""The course of the rate over one run, where the package's callbacks do not set it."""

from __future__ import annotations

LEGW_WARMUP = "0.7%"
"""Of training, at B₀: 22 % at 32·B₀, as the LAMB paper's ResNet-50 table has 20 of 90 epochs at its largest batch."""


def course(step: int, steps: int, warmup_steps: float = 0.0, k: int = 1) -> float:
    """What the peak rate is multiplied with: linear decay to 0, the same for every optimizer, and Goyal's warmup.

    Args:
        step: Steps done, from 0.
        steps: Of the whole run.
        warmup_steps: Over so many steps the rate climbs from 1/k of the peak, which is B₀'s, to all of it (Goyal et al.
            2017, arXiv 1706.02677, section 2.2); 0 for none.
        k: The batch as a multiple of B₀.
    """
    climbed = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return (1 / k + (1 - 1 / k) * climbed) * (1 - step / steps)
