"""Which keys a parameter group may have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

# Over all groups together.
_OPTIMIZERS_OWN = ("max_grad_norm", "skip_nonfinite", "fused")
_EVERY_GROUPS = ("params", "param_names")
# A group may have been another optimizer's: what torch's schedulers, Lightning's monitors and this package keep there.
_TAKEN = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "name", "decay_1d"}


def check_group_keys(group: dict[str, Any], options: Iterable[str], optimizer: str) -> None:
    """Refuse keys that would silently do nothing, and warn once of those that are no misspelling.

    Args:
        group: As its user wrote it.
        options: The optimizer's options that a group may have for itself.
        optimizer: The optimizer's name.

    Raises:
        ValueError: for a key that resembles a known one, and for an option of the whole optimizer.
    """
    known = (*options, *_EVERY_GROUPS, *_OPTIMIZERS_OWN)
    unused = []
    for key in group:
        if key in _TAKEN:
            continue
        close = get_close_matches(str(key).lower(), known, n=1, cutoff=0.8)
        meant = close[0] if close else None
        if meant in _OPTIMIZERS_OWN:
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
    if unused:
        warnings.warn(f"{optimizer} does not use these keys of a parameter group: {', '.join(unused)}.", stacklevel=2)
