"""What is to be done follows from what is done: nothing twice, nothing left out, in whatever order it is done."""

from __future__ import annotations

import random

import pytest

from examples.scaling_study.jobs import due, total
from examples.scaling_study.rows import Job, Row
from examples.scaling_study.settings import Settings, quick

_SETTINGS = Settings(tasks=("lstm", "bert"), optimizers=("sgd", "lamb"), ks=(1, 4), seeds=(0, 1), tuning_seeds=(7, 8))


def _row(job: Job, best: int = 1) -> Row:
    loss = float(abs(job.rate_index - best))
    return Row(**vars(job), batch_size=8, rate=2.0**job.rate_index, steps=1, train_loss=loss, tuning_loss=loss,
               tuning_accuracy=0.5, test_loss=loss, test_accuracy=0.5, diverged=False, seconds=1.0)  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("best", [1, 3])
def test_every_order_leads_to_the_same_runs(seed: int, best: int) -> None:
    draw, rows = random.Random(seed), list[Row]()
    while jobs := due(_SETTINGS, rows):
        rows.append(_row(draw.choice(jobs), best))
        assert len(rows) <= total(_SETTINGS, rows)
    assert len(rows) == len({row.job for row in rows}) == total(_SETTINGS, rows)
    rates = range(-2, max(2, best + 1) + 1)
    expected = {
        Job(task, optimizer, "tuning", 1, index, 7)
        for task in ("lstm", "bert") for optimizer in ("sgd", "lamb") for index in rates
    } | {
        Job(task, optimizer, "tuning", 1, index, 8)
        for task in ("lstm", "bert") for optimizer in ("sgd", "lamb") for index in (best - 1, best)  # the two best
    } | {
        Job(task, optimizer, "study", k, best, s)
        for task in ("lstm", "bert") for optimizer in ("sgd", "lamb") for k in (1, 4) for s in (0, 1)
    }  # fmt: skip
    assert {row.job for row in rows} == expected


def test_no_run_of_the_study_comes_before_its_rate() -> None:
    jobs = due(_SETTINGS, [])
    assert {job.phase for job in jobs} == {"tuning"}
    first = [_row(job) for job in jobs if (job.task, job.optimizer) == ("bert", "lamb")]
    between = [job for job in due(_SETTINGS, first) if job.optimizer == "lamb" and job.task == "bert"]
    assert {(job.phase, job.rate_index, job.seed) for job in between} == {("tuning", 0, 8), ("tuning", 1, 8)}
    assert {job.phase for job in due(_SETTINGS, [*first, _row(between[0])])} == {"tuning"}
    after = due(_SETTINGS, [*first, *(_row(job) for job in between)])
    assert {(job.task, job.optimizer) for job in after if job.phase == "study"} == {("bert", "lamb")}


def test_the_longest_runs_come_first() -> None:
    rows = [_row(job) for job in due(_SETTINGS, [])]
    rows += [_row(job) for job in due(_SETTINGS, rows)]
    ks = [job.k for job in due(_SETTINGS, rows)]
    assert ks == sorted(ks) and set(ks) == {1, 4}


def test_the_whole_study_has_702_runs_and_more_where_a_search_goes_on() -> None:
    settings = Settings()
    assert total(settings, []) == 3 * 6 * (5 + 2 * 2 + 6 * 5)
    assert total(quick("cpu"), []) == 2 * (3 + 2)
