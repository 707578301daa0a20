"""Which runs are to be done next: a pure function of the settings and of the rows that are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from examples.scaling_study import tuning
from examples.scaling_study.rows import Job, Row
from examples.scaling_study.settings import Settings


def due(settings: Settings, rows: Sequence[Row]) -> list[Job]:
    """The runs that can be done now and are not among the rows, the longest first.

    Of an optimizer whose rate is not chosen yet: tuning runs; of the others: the study's. Nothing is left when the study
    is complete.
    """
    done = {row.job for row in rows}
    wanted = [job for task in settings.tasks for name in settings.optimizers for job in _of(settings, rows, task, name)]
    return sorted((job for job in wanted if job not in done), key=lambda job: job.k)


def total(settings: Settings, rows: Sequence[Row]) -> int:
    """How many runs the study has, as far as it can be told: each search that goes on adds some."""
    pairs = [(task, name) for task in settings.tasks for name in settings.optimizers]
    least = 2 * settings.grid_half_width + 1 + settings.finalists * (len(settings.tuning_seeds) - 1)
    tried = (_tuning_jobs(settings, rows, *pair) for pair in pairs)
    study = len(settings.ks) * len(settings.seeds)
    return sum(
        max(least, len({*jobs, *(row.job for row in tuning.of(rows, *pair))})) + study
        for pair, jobs in zip(pairs, tried, strict=True)
    )


def _of(settings: Settings, rows: Sequence[Row], task: str, optimizer: str) -> Iterable[Job]:
    if searching := _tuning_jobs(settings, rows, task, optimizer):
        return searching
    best = tuning.choose(tuning.of(rows, task, optimizer)).rate_index
    return [Job(task, optimizer, "study", k, best, seed) for k in settings.ks for seed in settings.seeds]


def _tuning_jobs(settings: Settings, rows: Sequence[Row], task: str, optimizer: str) -> list[Job]:
    """The runs that the choice of one rate waits for: the search with the first seed, then the finalists' other seeds."""
    first, *others = settings.tuning_seeds
    mine = tuning.of(rows, task, optimizer)
    searched = [row for row in mine if row.seed == first]
    if indices := tuning.next_rates(searched, settings.grid_half_width, settings.grid_most):
        return [Job(task, optimizer, "tuning", 1, index, first) for index in indices]
    last = [
        Job(task, optimizer, "tuning", 1, index, seed)
        for index in tuning.finalists(searched, settings.finalists) for seed in others
    ]  # fmt: skip
    done = {row.job for row in mine}
    return last if any(job not in done for job in last) else []
