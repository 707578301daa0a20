"""What an optimizer calls its parameters."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def names_of(group: dict[str, Any], number: int) -> list[str]:
    """The names of a group's parameters: the user's, else ``"<group>.<index>"``."""
    names: list[str] | None = group.get("param_names")
    return names or [f"{number}.{i}" for i in range(len(group["params"]))]


def parameter_names(optimizer: Optimizer) -> dict[int, str]:
    """The name of each parameter, by ``id``."""
    return {
        id(p): name
        for number, group in enumerate(optimizer.param_groups)
        for p, name in zip(group["params"], names_of(group, number), strict=True)
    }
