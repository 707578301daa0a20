"""Warnings of trust ratios that look wrong, one for each layer and cause. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_NAMED = 5  # layers in one sentence


@dataclass
class RatioWarnings:
    """Warns once, for each layer and cause, that its ratio has left a band, or stays at 1 or at a bound of its clip.

    Args:
        band: The smallest and the largest ratio that bring no warning; ``None``: any.
        patience: Checks in a row after which a ratio that has not moved is no chance.

    Raises:
        ValueError: for a band whose ends are out of order or below 0, or ``patience`` below 1.
    """

    band: tuple[float, float] | None = None
    patience: int = 5
    _streaks: dict[str, dict[str, int]] = field(default_factory=dict)  # cause: layer: checks in a row
    _said: dict[str, set[str]] = field(default_factory=dict)  # cause: layers

    def __post_init__(self) -> None:
        if self.band is not None:
            if len(self.band) != 2 or not 0 <= self.band[0] < self.band[1]:
                raise ValueError(
                    f"band is {self.band}: give the smallest and the largest ratio that are no cause for a warning, such as"
                    " [0.001, 10]."
                )
            self.band = (float(self.band[0]), float(self.band[1]))
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}: give a whole number of at least 1.")

    def check(
        self, step: int, ratios: Mapping[str, float], clips: Mapping[str, tuple[float, float] | None]
    ) -> list[str]:
        """Return what is new at this step, one sentence a cause.

        Args:
            step: The number of optimizer steps done.
            ratios: The trust ratios of the layers that adapt.
            clips: The bounds on each layer's ratio; ``None`` for none.
        """
        found: dict[str, list[str]] = {"band": [], "one": [], "low": [], "high": []}
        for name, ratio in ratios.items():
            low, high = clips[name] or (-math.inf, math.inf)
            at = {"low": math.isclose(ratio, low, rel_tol=1e-6), "high": math.isclose(ratio, high, rel_tol=1e-6)}
            at["one"] = ratio == 1.0 and not any(at.values())
            for cause, holds in at.items():
                streak = self._streaks.setdefault(cause, {})
                streak[name] = streak.get(name, 0) + 1 if holds else 0
                if streak[name] >= self.patience:
                    found[cause].append(name)
            if self.band is not None and not self.band[0] <= ratio <= self.band[1]:
                found["band"].append(name)
        sentences = []
        for cause, names in found.items():
            said = self._said.setdefault(cause, set())
            new = [name for name in names if name not in said]
            said.update(new)
            if new:
                sentences.append(f"step {step}: {self._sentence(cause, new, ratios, clips)}")
        return sentences

    def _sentence(
        self,
        cause: str,
        names: Sequence[str],
        ratios: Mapping[str, float],
        clips: Mapping[str, tuple[float, float] | None],
    ) -> str:
        if cause == "band":
            assert self.band is not None
            shown = _listed([f"{name} ({ratios[name]:.3g})" for name in names])
            return f"the trust ratio of {shown} is outside of the band {self.band[0]:g} to {self.band[1]:g}."
        shown, looks = _listed(names), f"for {self.patience} looks in a row"
        if cause == "one":
            return f"the trust ratio of {shown} is 1 {looks}, as it is where weights or update are all zero."
        bounds = clips[names[0]]
        assert bounds is not None
        which, bound = ("lower", bounds[0]) if cause == "low" else ("upper", bounds[1])
        return f"the trust ratio of {shown} is at the {which} bound of its clip, {bound:g}, {looks}."

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs so that it does not warn again."""
        streaks = {cause: {name: n for name, n in streak.items() if n} for cause, streak in self._streaks.items()}
        return {"streaks": streaks, "said": {cause: sorted(names) for cause, names in self._said.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._streaks = {cause: dict(streak) for cause, streak in state["streaks"].items()}
        self._said = {cause: set(names) for cause, names in state["said"].items()}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
