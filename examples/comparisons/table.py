"""A comparison's numbers in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from examples.comparisons.catalogue import Comparison, Variant
from examples.comparisons.curves import Curve, distance, mean_and_spread

Curves = Mapping[str, Mapping[int, Curve]]
"""Variant, seed, curve."""


def table(comparison: Comparison, curves: Curves) -> str:
    """Losses in nats: mean ± standard deviation over the seeds; differences are taken seed by seed.

    Args:
        comparison: What was compared.
        curves: All of its runs.
    """
    first = _first_of(comparison)
    stages = next(iter(curves[first[comparison.variants[0].name]].values())).stages()
    validations = ["held-out loss"] if len(stages) == 1 else [f"held-out loss after stage {stage}" for stage in stages]
    header = [
        "",
        "steps",
        "training loss",
        *validations,
        "held-out, less the first's",
        "farthest training loss",
        "ratios",
    ]
    body = [
        _line(variant, curves[variant.name], curves[first[variant.name]], stages) for variant in comparison.variants
    ]
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])
    return f"### {comparison.title}\n\n{rows}\n"


LEGEND = """\
Mean ± standard deviation over the seeds, in nats. *training loss*: of the last twentieth of the steps. *held-out, less the
first's*: the last held-out loss less that of the first line that it is compared with, seed by seed. *farthest training loss*:
the largest distance, at any step and seed, from that line's. *ratios*: the trust ratios of the layers that adapt at the first
step (first seed), from the smallest to the largest.
"""


def _first_of(comparison: Comparison) -> dict[str, str]:
    """Each variant's first of its panel."""
    return {name: panel.variants[0] for panel in reversed(comparison.panels) for name in reversed(panel.variants)}


def _line(variant: Variant, mine: Mapping[int, Curve], first: Mapping[int, Curve], stages: Sequence[int]) -> list[str]:
    some = next(iter(mine.values()))
    validations = [[curve.validation_after_stage(stage) for curve in mine.values()] for stage in stages]
    cells = [variant.title, f"{len(some.steps):,}", _number([curve.last_loss() for curve in mine.values()])]
    cells += [_number([value for value in values if value is not None]) for values in validations]
    if mine is first:
        return [*cells, "", "", _ratios(some)]
    last = stages[-1]
    pairs = [(mine[seed].validation_after_stage(last), first[seed].validation_after_stage(last)) for seed in mine]
    differences = [own - other for own, other in pairs if own is not None and other is not None]
    same_steps = all(len(mine[seed].steps) == len(first[seed].steps) for seed in mine)
    farthest = f"{max(distance(mine[seed], first[seed]).max() for seed in mine):.1g}" if same_steps else ""
    return [*cells, _number(differences, signed=True), farthest, _ratios(some)]


def _number(values: Sequence[float], signed: bool = False) -> str:
    if not values:
        return "–"
    mean, spread = mean_and_spread(values)
    return (f"{mean:+.3f}" if signed else f"{mean:.3f}") + (f" ± {spread:.3f}" if spread is not None else "")


def _ratios(curve: Curve) -> str:
    least, most = curve.ratio_least[0], curve.ratio_most[0]
    return "" if np.isnan(least) else f"{least:.3g} to {most:.3g}"
