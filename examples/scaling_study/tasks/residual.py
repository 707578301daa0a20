"""A small residual network on the digits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from examples.resnet.network import small_network
from examples.scaling_study.tasks.digits import digits
from examples.scaling_study.tasks.task import Size, Task, TaskData


def residual_task(size: Size) -> Task:
    """Three residual blocks, normalized image by image (`group_norm`): a batch changes nothing but the steps."""
    return Task(
        "residual",
        "residual network, digits",
        base_batch_size=16,
        epochs={"small": 12, "large": 20}[size],
        load=_load,
        network=partial(small_network, width={"small": 12, "large": 64}[size]),
    )


def _load(folder: Path) -> TaskData:
    return digits(rows_as_sequence=False)
