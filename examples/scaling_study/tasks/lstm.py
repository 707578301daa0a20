"""An LSTM that reads the digits row by row."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor, nn

from examples.scaling_study.tasks.digits import digits
from examples.scaling_study.tasks.task import Size, Task, TaskData


class RowReader(nn.Module):
    """An LSTM over an image's rows, and a linear layer on its last state (as in You et al. 2019, arXiv 1901.08256).

    Args:
        pixels: In a row.
        hidden: The LSTM's width.
        classes: To tell apart.
    """

    def __init__(self, pixels: int = 8, hidden: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.lstm = nn.LSTM(pixels, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes)

    def forward(self, rows: Tensor) -> Tensor:
        """[samples, rows, pixels] → [samples, classes]."""
        states, _ = self.lstm(rows)
        logits: Tensor = self.out(states[:, -1])
        return logits


def lstm_task(size: Size) -> Task:
    """Eight rows of eight pixels."""
    return Task(
        "lstm",
        "LSTM, digits row by row",
        base_batch_size=8,
        epochs={"small": 10, "large": 20}[size],
        load=_load,
        network=partial(RowReader, hidden={"small": 64, "large": 256}[size]),
    )


def _load(folder: Path) -> TaskData:
    return digits(rows_as_sequence=True)
