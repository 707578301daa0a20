"""Stages one after the other, each a process with a limit of its own, and a log of what became of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
_LEAST = 1.0  # With fewer seconds than this left, no stage is begun.


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Stage:
    """One part of a session.

    Args:
        name: What the log calls it.
        file: The file in the session's folder that takes what it prints, behind what is already there.
        share: Its part of the session's time, beside the parts of the other stages.
        command: Gives the command line, from the seconds that the stage has.
        repeated: A pattern of the printed lines that are to be in the log, too; empty for none.
        collect: Called after the stage, however it ended, to bring home the files that it has written elsewhere.
    """

    name: str
    file: str
    share: float
    command: Callable[[float], list[str]]
    repeated: str = ""
    collect: Callable[[], object] = _nothing


class Session:
    """Runs stages within a time, and goes on whatever becomes of any of them.

    A stage's limit is its share of the time that is left for it and for the stages after it, so that each has at least its
    own part of the whole, and what one leaves over goes to the next ones.

    Args:
        folder: Where the files go. It is made, and the files of the stages are emptied.
        seconds: The time of all stages together.
        environment: The environment variables of the stages.
        began: When, by ``time.monotonic``; now unless given.
        grace: How many seconds a stage has from the interrupt at its limit on until it is killed.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        environment: Mapping[str, str],
        began: float | None = None,
        grace: float = 5.0,
    ) -> None:
        self._folder, self._seconds, self._environment, self._grace = folder, seconds, dict(environment), grace
        self._began = monotonic() if began is None else began
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        self._log.write_bytes(b"")

    def say(self, line: str) -> None:
        """Print a line and add it to the log, both with the seconds since the session began."""
        self._print(f"[{self._passed():.0f} s] {line}")

    def run(self, stages: Sequence[Stage]) -> list[str]:
        """Run the stages in their order.

        Returns:
            The names of those that did not end well.
        """
        for stage in stages:
            (self._folder / stage.file).write_bytes(b"")
        return [stage.name for number, stage in enumerate(stages) if not self._run(stage, stages[number:])]

    def _run(self, stage: Stage, to_come: Sequence[Stage]) -> bool:
        limit = (self._seconds - self._passed()) * stage.share / sum(other.share for other in to_come)
        if limit < _LEAST:
            self.say(f"{stage.name}: not begun, for no time is left")
            return False
        self.say(f"{stage.name}: begins, and has {limit:.0f} s")
        file, began = self._folder / stage.file, monotonic()
        before = file.stat().st_size
        try:
            trouble = self._wait_for(stage.command(limit), file, limit)
            stage.collect()
        except Exception as error:  # It is this stage's, and not to keep the others from running.
            trouble = f"FAILED, {type(error).__name__}: {error},"
        for line in file.read_bytes()[before:].decode(errors="replace").splitlines():
            if stage.repeated and re.match(stage.repeated, line):
                self._print(f"    {line}")
        self.say(f"{stage.name}: {trouble or 'ended well'} after {monotonic() - began:.0f} s")
        return not trouble

    def _wait_for(self, command: Sequence[str], file: Path, limit: float) -> str:
        """Run a command and see that nothing of it is left. Returns what went wrong, or nothing."""
        with file.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # The stage leads a process group, which can be killed as a whole.
            )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # pytest, for one, then says what has failed so far.
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._grace)
            return "stopped at its limit"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return f"FAILED with status {status}" if status else ""

    def _passed(self) -> float:
        return monotonic() - self._began

    def _print(self, line: str) -> None:
        print(line, flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")
