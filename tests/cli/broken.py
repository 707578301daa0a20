"""Classes whose code fails."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch

from tests.cli.late import LateNet
from tests.toys import Vectors

ERRORS = {
    "index": lambda: [][0],
    "key": lambda: {}["x"],
    "type": lambda: {"a": 1} + 1,  # type: ignore[operator]
    "value": lambda: int("no number"),
    "attribute": lambda: None.x,  # type: ignore[attr-defined]
    "in torch": lambda: torch.nn.Linear(2, 2)(torch.zeros(3)),
}


class BrokenNet(LateNet):
    def __init__(self, error: str) -> None:
        super().__init__()
        ERRORS[error]()


class BrokenData(Vectors):
    def __init__(self, error: str) -> None:
        super().__init__()
        ERRORS[error]()


class BrokenCallback(L.Callback):
    def __init__(self, error: str) -> None:
        ERRORS[error]()


class BrokenSGD(torch.optim.SGD):
    def __init__(self, params: Any, error: str, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        ERRORS[error]()


class BrokenStep(LateNet):
    def __init__(self, error: str) -> None:
        super().__init__()
        self._error = error

    def training_step(self, *args: Any) -> Any:
        ERRORS[self._error]()
