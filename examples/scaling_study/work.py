"""Jobs in worker processes, one for each core."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from examples.scaling_study.rows import Job, Row
from examples.scaling_study.settings import Settings
from examples.scaling_study.tasks import TASKS
from examples.scaling_study.tasks.task import Task, TaskData


def do(job: Job, settings: Settings, folder: Path) -> Row:
    """Do one run."""
    from examples.scaling_study.recipes import RECIPES
    from examples.scaling_study.training import train
    from examples.scaling_study.tuning import rate

    task, data = _task(job.task, settings, folder)
    recipe = RECIPES[job.optimizer]
    base_rate = rate(recipe.middle_rate, job.rate_index)
    outcome = train(task, data, recipe, base_rate, job.k, job.seed, settings.device)
    return Row(**vars(job), batch_size=job.k * task.base_batch_size, rate=base_rate, **vars(outcome))


def do_all(
    due: Callable[[Sequence[Job]], list[Job]],
    take: Callable[[Row], object],
    settings: Settings,
    folder: Path,
    workers: int,
) -> None:
    """Do jobs until none is due and none is running.

    Args:
        due: Given the jobs that are running: those that may be begun now.
        take: Given each row as soon as it is there.
        settings: The study's.
        folder: Where tasks keep what they make once.
        workers: Processes; 0 for this one.
    """
    if not workers:
        with _quiet():
            while jobs := due(()):
                take(do(jobs[0], settings, folder))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        running: dict[Future[Row], Job] = {}
        try:
            while True:
                free = workers - len(running)  # no more, for what is due next may follow from what is running
                for job in due(list(running.values()))[:free]:
                    running[pool.submit(do, job, settings, folder)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[future]
                    take(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache
def _task(name: str, settings: Settings, folder: Path) -> tuple[Task, TaskData]:
    task = TASKS[name](settings.size)
    task = replace(task, epochs=settings.epochs(task))
    return task, task.load(folder)


def _begin() -> None:
    """In a new worker: one thread, silence, and an end with the process that began it."""
    import torch

    torch.set_num_threads(1)
    _silence()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed: nobody would take the row, and nobody would send another job


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks at every start."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings():
        _silence()
        try:
            yield
        finally:
            logger.setLevel(level)


def _silence() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
