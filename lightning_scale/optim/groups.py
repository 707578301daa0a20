"""Parameter groups: the checks of their options, which keys they may have, and what their parameters are called."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.layout import matches


def non_negative(name: str, value: float | Tensor) -> None:
    """Raise a ValueError unless ``value`` is a finite number, numpy's too, or a tensor of one element, of at least 0."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}: give a number or a 0-d tensor.")
    if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
        raise TypeError(f"{name} is {value!r}: give a number of at least 0.")
    if not (value >= 0 and (isinstance(value, Tensor) or math.isfinite(value))):
        raise ValueError(f"{name} is {value}: give a finite number of at least 0.")


def finite(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number.")


def positive(name: str, value: float | None) -> None:
    """Raise a ValueError unless ``value`` is None or above 0."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} is {value}: give a number above 0, or None to leave it off.")


def fraction(name: str, value: float) -> None:
    """Raise a ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}: give a number of at least 0 and below 1.")


def betas(value: Sequence[float]) -> tuple[float, float]:
    """Return the two decay rates of Adam's moments as a tuple of floats.

    Raises:
        ValueError: Unless there are two, each in [0, 1).
    """
    pair = _pair(value)
    if pair is None:
        raise ValueError(f"betas is {value!r}: give two numbers, such as (0.9, 0.999).")
    for i, beta in enumerate(pair):
        fraction(f"betas[{i}]", beta)
    return pair


def bounds(name: str, value: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the bounds of a clip as a tuple, or None where there is no clip.

    Raises:
        ValueError: Unless 0 <= low <= high.
    """
    if value is None:
        return None
    pair = _pair(value)
    if pair is None or not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"{name} is {value!r}: give (low, high) with 0 <= low <= high, or None for no clip.")
    return pair


def rounding(how: str, seed: int) -> None:
    """Raise a ValueError unless ``how`` is a way to round weights, and ``seed`` a whole number."""
    if how not in ("nearest", "stochastic"):
        raise ValueError(f'weight_rounding is {how!r}: write "nearest" or "stochastic".')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"weight_rounding_seed is {seed!r}: give a whole number.")


def patterns(name: str, value: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return patterns of parameters' names as a tuple, or None where there are none.

    Raises:
        ValueError: For anything but a sequence of strings.
    """
    if value is None:
        return None
    if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
        raise ValueError(
            f'{name} is {value!r}: give a list of patterns of names, such as ["*.bn.*"], or None for none.'
        )
    return tuple(value) or None


def check_patterns(name: str, value: Sequence[str] | None, groups: Sequence[dict[str, Any]]) -> None:
    """Raise a ValueError for patterns without names that they could match, and for one that matches none in these groups."""
    if not value:
        return
    if any("param_names" not in group for group in groups):
        raise ValueError(
            f"{name} has patterns of names, and the parameters were given without names: give named_parameters(), not"
            " parameters()."
        )
    names = [own for group in groups for own in group["param_names"]]
    for pattern in value:
        if not any(matches(own, (pattern,)) for own in names):
            close = ", ".join(map(repr, _closest(pattern, names)))
            raise ValueError(
                f"{name} has the pattern {pattern!r}, which matches no parameter's name: write one that does, or leave it out;"
                f" close to it are {close}."
            )


def _closest(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the three names whose parts are most like the parts of a pattern."""
    wanted = [part for part in re.split(r"[^\w]+", pattern) if part]

    def likeness(name: str) -> float:
        parts = name.split(".")
        return sum(max(SequenceMatcher(None, part, own).ratio() for own in parts) for part in wanted)

    return sorted(dict.fromkeys(names), key=likeness, reverse=True)[:3]


def bool_or_none(name: str, value: bool | None) -> None:
    """Raise a ValueError unless ``value`` is True, False or None."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give True or False, or None to leave it to exclude_1d.")


def _pair(value: Sequence[float]) -> tuple[float, float] | None:
    """Return two numbers as floats, and None for anything else."""
    try:
        first, second = value
        return float(first), float(second)
    except (TypeError, ValueError):
        return None


# Over all groups together.
OPTIMIZERS_OWN = ("max_grad_norm", "skip_nonfinite", "fused", "weight_rounding", "weight_rounding_seed")
_EVERY_GROUPS = ("params", "param_names")
# A group may have been another optimizer's: what torch's schedulers, Lightning's monitors and this package keep there.
_TAKEN = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "name", "decay_1d"}


def check_group_keys(
    group: dict[str, Any], options: Iterable[str], optimizer: str, whole: Mapping[str, Any]
) -> list[str]:
    """Refuse keys that would silently do nothing, and return those that are no misspelling.

    Args:
        group: A parameter group as its user wrote it, or as a wrapper did, out of the defaults that it was given.
        options: The names of the options that a group may have for itself.
        optimizer: The optimizer's name, for the sentences.
        whole: The options of the whole optimizer. A group may repeat them.

    Raises:
        ValueError: For a key that resembles a known one, and for an option of the whole optimizer.
    """
    known = (*options, *_EVERY_GROUPS, *OPTIMIZERS_OWN)
    unused = []
    for key in group:
        if key in _TAKEN:
            continue
        close = get_close_matches(str(key).lower(), known, n=1, cutoff=0.8)
        meant = close[0] if close else None
        if key in whole and same(group[key], whole[key]):
            continue
        if meant in OPTIMIZERS_OWN:
            raise ValueError(
                f"a parameter group has the key {key!r}, but {meant} holds for all groups together: leave it out of the"
                f" group and write {optimizer}(..., {meant}=...)."
            )
        if meant is None:
            unused.append(str(key))
        elif key != meant:
            raise ValueError(
                f"a parameter group has the key {key!r}, which {optimizer} does not know: write {meant!r}, or leave it"
                " out."
            )
    return unused


def same(one: Any, other: Any) -> bool:
    """Return whether an option of a group is what the optimizer has anyway, and so no word of the group's own."""
    try:
        return bool(one == other)
    except (RuntimeError, TypeError, ValueError):  # tensors and arrays of several elements
        return one is other


def names_of(group: dict[str, Any], number: int) -> list[str]:
    """Return the names of a group's parameters: those that the user gave, else ``"<group>.<index>"``."""
    names: list[str] | None = group.get("param_names")
    return names or [f"{number}.{i}" for i in range(len(group["params"]))]


def parameter_names(optimizer: Optimizer) -> dict[int, str]:
    """Return the name of each of an optimizer's parameters, by the parameter's ``id``."""
    return {
        id(p): name
        for number, group in enumerate(optimizer.param_groups)
        for p, name in zip(group["params"], names_of(group, number), strict=True)
    }
