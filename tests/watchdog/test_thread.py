"""Who is said to have failed, on rank 0 of four, with the times of a made-up clock."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lightning_scale.watchdog.thread import Failure, Watchdog


class Sent:
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


def watch(counts: list[int]) -> Watchdog:
    """Ranks that have come so far, just now."""
    made = Watchdog(0, {rank: Sent() for rank in range(1, len(counts))}, 100.0, 30.0, lambda: None)  # type: ignore[misc]
    for rank, count in enumerate(counts):
        state = {"count": count, "place": f"place {count}", "state": "running"}
        made._seen[rank].note(state, time.monotonic())
    return made


def found(made: Watchdog, seconds: float, heard: bool = True) -> Failure | None:
    """What is found after so many seconds in which no rank went on."""
    now = time.monotonic() + seconds
    for seen in made._seen.values():
        seen.heard = now if heard else seen.heard
    made._look(now)
    return made._first


@pytest.mark.parametrize(
    ("counts", "rank", "said"),
    [
        ([8, 8, 7, 8], 2, "after place 7, and the others wait for it"),
        ([5, 8, 8, 8], 0, "after place 5, and the others wait for it"),
        ([8, 7, 8, 7], 1, "after place 7 (as little as ranks [3]), and the others wait for it"),
        ([8, 8, 8, 8], 0, "after place 8, and no rank goes on"),
    ],
)
def test_the_rank_that_came_least_far_hangs(counts: list[int], rank: int, said: str) -> None:
    made = watch(counts)
    assert found(made, 99.0) is None
    failure = found(made, 101.0)
    assert failure is not None and failure.hang
    assert str(failure) == f"rank {rank} has not gone on for 100 s {said}"
    assert {"first": vars(failure)} in made._connections[3].messages  # type: ignore[attr-defined]


def test_where_hosts_run_ahead_nobody_is_blamed_for_sure() -> None:
    made = watch([8, 7])
    made._runs_ahead = True
    failure = found(made, 101.0)
    assert failure is not None and failure.rank == 1
    assert "it may be another rank's that hangs" in str(failure)


@pytest.mark.parametrize("place", ["on_train_epoch_end", "on_train_end", "on_train_epoch_start"])
@pytest.mark.parametrize("out", [0, 2])
def test_a_rank_that_ran_out_of_data_is_named_not_those_that_wait(place: str, out: int) -> None:
    """It has come further than the others, by one place or by several."""
    made = watch([8, 8, 8, 8])
    for rank, seen in made._seen.items():
        at, count = (f"{place} of step 4", 11) if rank == out else ("on_before_backward of step 4", 9)
        seen.note({"count": count, "place": at, "state": "running"}, time.monotonic())
    failure = found(made, 101.0)
    waits = 1 if out == 0 else 0
    assert failure is not None and failure.hang and failure.rank == out
    assert f"has run out of data: it has come to {place} of step 4, and rank {waits} waits for it" in failure.reason


def test_a_rank_that_was_told_to_leave_does_not_hang_but_is_not_left_alone() -> None:
    made = watch([8, 8, 8, 8])
    made._seen[1].note({"count": 9, "place": "x", "state": "left", "status": 143}, time.monotonic())
    made._seen[1].gone = True
    assert found(made, 59.0) is None
    assert str(found(made, 61.0)) == "rank 1 has ended with status 143, and the others went on"


def test_an_end_without_a_word_and_silence() -> None:
    made = watch([8, 8, 8, 8])
    made._seen[3].gone = True
    assert str(found(made, 1.0)).startswith("rank 3 ended without a word (last heard of at place 8)")
    made = watch([8, 8, 8, 8])
    assert found(made, 29.0, heard=False) is None
    assert str(found(made, 31.0, heard=False)).startswith("rank 1 has not been heard of for 30 s")


def test_at_the_end_of_fit_ranks_may_go() -> None:
    made = watch([8, 8, 8, 8])
    made.arrive()
    made._seen[3].gone = True
    assert found(made, 50.0) is None


def test_the_first_failure_stays_the_first() -> None:
    made = watch([8, 8, 8, 8])
    made._say(Failure(2, "raised A"))
    made._say(Failure(1, "raised B"))
    assert str(made._first) == "rank 2 raised A"
