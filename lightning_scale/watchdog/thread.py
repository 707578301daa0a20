"""Runs a thread on every rank that ends its process when another rank has failed, hangs or was killed."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_scale.one_run import OfOneRun
from lightning_scale.watchdog.connections import Connection

_TICK = 0.2  # seconds between two looks
_BEAT = 1.0  # seconds between two reports
_GRACE = 3.0  # seconds for a rank that was told of a failure to end by itself
_LAST = 60.0  # the same for a rank that has raised, and for those that another has left by sys.exit

# Of the places that ranks come to: all ranks' micro-batches belong together, and so do their epochs' ends.
_EPOCHS_ENDS = ("on_train_epoch_end", "on_train_end", "on_train_epoch_start")
_MICRO_BATCHES = ("on_train_batch", "on_before_backward", "on_after_backward", "on_before_optimizer_step")

State = Literal["running", "told", "failed", "left"]


@dataclass(frozen=True)
class Failure:
    """The first failure of any rank that is known."""

    rank: int
    reason: str
    hang: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} {self.reason}"


@dataclass
class Seen:
    """What is known of one rank: how far it has come, and when it was last heard of."""

    count: int = 0
    place: str = "the start"
    state: State = "running"
    gone: bool = False
    """Whether its connection has ended."""
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    """The time at which its count last grew."""
    left: float | None = None
    status: int = 0

    def note(self, message: dict[str, Any], now: float) -> None:
        """Take over what the rank reports."""
        self.heard = now
        if message["count"] != self.count:
            self.count, self.place, self.moved = message["count"], message["place"], now
        self.state = message["state"]
        if self.state == "left" and self.left is None:
            self.left, self.status = now, message["status"]


class Watchdog(OfOneRun, threading.Thread):
    """Reports this rank, and looks after the others: rank 0 after all, each other one after rank 0.

    The first failure that rank 0 learns of is the one that all are told. A rank that is told ends with status 1: it gets
    a few seconds to do so by itself, for it may be about to raise the same error.

    Args:
        rank: This process's rank.
        connections: The connections that `connections.connect` has made.
        hang_seconds: The time without progress (`passed`) after which a rank counts as one that hangs.
        silent_seconds: The time without a word from its process after which a rank counts as lost.
        kill_children: A function that ends the processes that this one has launched.
        runs_ahead: Whether ranks queue work for devices, and wait for it later.
    """

    def __init__(
        self,
        rank: int,
        connections: dict[int, Connection],
        hang_seconds: float,
        silent_seconds: float,
        kill_children: Callable[[], None],
        runs_ahead: bool = False,
    ) -> None:
        super().__init__(daemon=True, name="lightning_scale-watchdog")
        self._rank = rank
        self._connections = connections
        self._hang_seconds = hang_seconds
        self._silent_seconds = silent_seconds
        self._kill_children = kill_children
        self._runs_ahead = runs_ahead
        self._seen = {other: Seen() for other in sorted({rank, *connections})}
        self._own = self._seen[rank]
        self._said: Failure | None = None  # by this rank, not yet told to rank 0
        self._first: Failure | None = None
        self._known = threading.Event()
        self._told_at = 0.0
        self._done = threading.Event()
        self._arriving = False

    # -- called by the training thread ---------------------------------------------------------------------------------

    def passed(self, place: str) -> None:
        """Note that this rank has come to a place in its training."""
        self._own.note({"count": self._own.count + 1, "place": place, "state": self._own.state}, time.monotonic())

    def fail(self, reason: str, follows: bool) -> Failure:
        """Report that this rank has raised, and wait a few seconds at most until it is known which failure was the first.

        Args:
            reason: What this rank has raised.
            follows: Whether that may be what the end of another rank looks like from here.
        """
        if follows:
            self._known.wait(2 * _BEAT)  # the end of the other's connection says so too
        if not self._known.is_set():
            self._said = Failure(self._rank, reason)
        self._own.state = "failed"
        self._known.wait(5 * _BEAT)
        first = self._first or Failure(self._rank, reason)
        end = time.monotonic() + _GRACE
        while self._waits_for_others() and time.monotonic() < end:  # rank 0 must live to tell them
            time.sleep(_TICK)
        if self._waits_for_others():
            self._kill_children()
        return first

    def leave(self, status: int) -> None:
        """Report that this rank ends because it was told to; the others should do so soon."""
        self._own.status, self._own.left = status, time.monotonic()
        self._own.state = "left"
        time.sleep(2 * _TICK)  # until that was reported

    def arrive(self) -> None:
        """Note that this rank is at its end and waits for the others: from now on it is no failure if a process ends."""
        self._arriving = True

    def close(self) -> None:
        """End the thread, after all ranks have come to their end."""
        self._done.set()
        self.join(10 * _TICK)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Watch until `close` is called, or until all ranks have ended."""
        reported, last = 0.0, ("", 0)
        while not self._done.is_set():
            self._listen()
            now = time.monotonic()
            present = (self._own.state, self._own.count)
            if now - reported >= _BEAT or present[0] != last[0]:
                self._tell(self._report())
                reported, last = now, present
            if self._said is not None:
                self._say(self._said)
                self._said = None
            if self._first is None and self._own.state == "running":
                self._look(now)
            if self._first is not None and self._after_failure(now):
                break
        for connection in self._connections.values():
            connection.close()

    def _report(self) -> dict[str, Any]:
        own = self._own
        return {"count": own.count, "place": own.place, "state": own.state, "status": own.status}

    def _tell(self, message: dict[str, Any]) -> None:
        for other, connection in self._connections.items():
            if not self._seen[other].gone:
                connection.send(message)

    def _listen(self) -> None:
        """Take in what comes within one tick."""
        open_ones = {c: rank for rank, c in self._connections.items() if not self._seen[rank].gone}
        if not open_ones:
            time.sleep(_TICK)
            return
        for connection in _readable(list(open_ones)):
            other = open_ones[connection]
            messages = connection.receive()
            if messages is None:
                self._seen[other].gone = True
                connection.close()
            for message in messages or ():
                if "first" in message:
                    self._adopt(Failure(**message["first"]), other)
                else:
                    self._seen[other].note(message, time.monotonic())

    def _say(self, failure: Failure) -> None:
        """Report a failure to rank 0, or let rank 0 decide at once."""
        if self._rank == 0 or self._seen[0].gone:
            self._adopt(failure, self._rank)
        else:
            self._tell({"first": vars(failure)})

    def _adopt(self, failure: Failure, teller: int) -> None:
        """Take a failure as the first one, if none is known yet; rank 0 tells it to all, and its word is final."""
        if self._first is not None:
            return
        self._first, self._told_at = failure, time.monotonic()
        if self._rank == 0:
            self._tell({"first": vars(failure)})
        if failure.rank != self._rank or failure.hang:
            stack = f"\n{_main_stack()}" if failure.hang else ""
            print(f"[rank {self._rank}] {failure}; this rank ends too.{stack}", file=sys.stderr, flush=True)
        if self._own.state == "running":
            self._own.state = "told"
        self._known.set()

    def _look(self, now: float) -> None:
        """Report a rank that this one watches and that does not go on."""
        for rank, seen in self._seen.items():
            if seen.state == "left":
                if now - (seen.left or now) > _LAST:
                    self._say(Failure(rank, f"has ended with status {seen.status}, and the others went on"))
            elif seen.gone and seen.state == "running" and not self._arriving:
                self._say(
                    Failure(
                        rank, f"ended without a word (last heard of at {seen.place}): it was killed, or has crashed"
                    )
                )
            elif rank != self._rank and not seen.gone and now - seen.heard > self._silent_seconds:
                self._say(
                    Failure(
                        rank, f"has not been heard of for {self._silent_seconds:g} s: its machine is lost, or stuck"
                    )
                )
        if self._rank == 0 and self._first is None:
            self._look_for_hang(now)

    def _look_for_hang(self, now: float) -> None:
        running = {rank: seen for rank, seen in self._seen.items() if seen.state == "running"}
        if all(now - seen.moved <= self._hang_seconds for seen in running.values()):
            return
        ended = [rank for rank, seen in running.items() if seen.place.startswith(_EPOCHS_ENDS)]
        inside = [rank for rank, seen in running.items() if seen.place.startswith(_MICRO_BATCHES)]
        if ended and inside:  # the one that has come less far is the one that waits
            reason = (
                f"has run out of data: it has come to {running[ended[0]].place}, and rank {inside[0]} waits for it after"
                f" {running[inside[0]].place}. Give all ranks as many micro-batches (ResumableBatchSampler and a"
                " DistributedSampler do, and limit_train_batches cuts those that have more)"
            )
            self._say(Failure(ended[0], reason, hang=True))
            return
        least = min(seen.count for seen in running.values())
        late = [rank for rank, seen in running.items() if seen.count == least]
        others = "the others wait for it" if len(late) < len(running) else "no rank goes on"
        listed = "" if len(late) == 1 or len(late) == len(running) else f" (as little as ranks {late[1:]})"
        place = running[late[0]].place
        reason = f"has not gone on for {self._hang_seconds:g} s after {place}{listed}, and {others}"
        if self._runs_ahead:  # the place is where its host stands, and all hosts stand where they wait for a device
            reason += " (hosts run ahead of their devices: it may be another rank's that hangs; see each rank's log)"
        self._say(Failure(late[0], reason, hang=True))

    def _after_failure(self, now: float) -> bool:
        """End this process if it does not end by itself, and return True if that is not needed."""
        if self._own.state == "failed":
            if not self._waits_for_others():
                return True
            if now - self._told_at > _LAST:
                self._end()
        elif self._own.state != "left" and now - self._told_at > _GRACE:
            self._end()
        return False

    def _waits_for_others(self) -> bool:
        """Return whether a rank that this one speaks to has neither ended nor been told."""
        return any(seen.state == "running" and not seen.gone for rank, seen in self._seen.items() if rank != self._rank)

    def _end(self) -> None:
        end = time.monotonic() + 2 * _BEAT
        while self._waits_for_others() and time.monotonic() < end:
            self._tell(self._report())
            self._listen()
        self._kill_children()
        sys.stderr.flush()
        os._exit(1)  # the training thread may wait in a collective, for ever


def _readable(connections: list[Connection]) -> list[Connection]:
    """Return the connections that have something to read within one tick; unlike select it takes any file descriptor."""
    poll = select.poll()
    by_number = {connection.fileno(): connection for connection in connections}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(_TICK * 1000)]


def _main_stack() -> str:
    """Return the stack of the training thread, as text."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
