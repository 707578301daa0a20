"""What a monitor has measured at some steps of a run, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class History:
    """Rows of named numbers by step, enough of them for a picture.

    Beyond ``most`` rows every second one is forgotten, so the older ones lie further apart.

    Args:
        most: The largest number of rows that are kept.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self.names: list[str] = []
        self.steps: list[int] = []
        self._rows: list[Tensor] = []  # float32, of the names known at its step

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of one step; a name may be new."""
        known = set(self.names)
        self.names += [name for name in values if name not in known]
        self.steps.append(step)
        self._rows.append(torch.tensor([values.get(name, math.nan) for name in self.names], dtype=torch.float32))
        if len(self.steps) > self._most:
            del self.steps[1:-1:2], self._rows[1:-1:2]

    def __len__(self) -> int:
        return len(self.steps)

    def table(self) -> Tensor:
        """[names, steps] float32; NaN where a name had no value."""
        table = torch.full((len(self.names), len(self._rows)), math.nan)
        for column, row in enumerate(self._rows):
            table[: len(row), column] = row
        return table

    def row(self, name: str) -> list[float]:
        """One name's values over the steps; empty where the name is not known."""
        return [float(value) for value in self.table()[self.names.index(name)]] if name in self.names else []

    def state_dict(self) -> dict[str, Any]:
        """All rows, for a checkpoint."""
        return {"names": list(self.names), "steps": list(self.steps), "table": self.table()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the rows of a checkpoint in the place of those that are here."""
        self.names, self.steps = list(state["names"]), list(state["steps"])
        self._rows = list(state["table"].T.contiguous().unbind())
