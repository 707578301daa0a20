"""How large a study is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from examples.scaling_study.recipes import RECIPES
from examples.scaling_study.tasks import TASKS
from examples.scaling_study.tasks.task import Size, Task


@dataclass(frozen=True)
class Settings:
    """What a study compares. Rows of different settings do not go into one table."""

    size: Size = "small"
    device: str = "cpu"
    tasks: tuple[str, ...] = tuple(TASKS)
    optimizers: tuple[str, ...] = tuple(RECIPES)
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Batches, as multiples of each task's base batch."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (1000, 1001, 1002)
    """Others than the study's, so that no rate is chosen by a run that counts. The first one's runs are the search."""
    finalists: int = 2
    """Rates of the search that are run with the other tuning seeds, too; the best of them on average is taken."""
    grid_half_width: int = 2
    """Rates tried at first: so many on each side of the middle, each twice the one before."""
    grid_most: int = 6
    """How far the search goes on while the best rate lies at an end of what was tried."""
    epochs_factor: float = 1.0
    """Each task's own epochs are multiplied with it."""

    def epochs(self, task: Task) -> int:
        """Passes over a task's training samples."""
        return max(1, round(self.epochs_factor * task.epochs))

    def as_json(self) -> dict[str, Any]:
        """Plain values, as ``study.json`` has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def quick(device: str) -> Settings:
    """One task, two optimizers, two batches, one seed, four epochs: it shows that everything works, and no more."""
    return Settings(
        device=device,
        tasks=("lstm",),
        optimizers=("sgd", "lamb"),
        ks=(1, 8),
        seeds=(0,),
        grid_half_width=1,
        grid_most=2,
        tuning_seeds=(1000,),
        epochs_factor=0.4,
    )
