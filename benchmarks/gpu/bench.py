"""What the stages of a session have in common: their options, parameters on a device, and how a step on them is timed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import ceil
from statistics import median
from typing import Any

import torch
import triton  # noqa: F401  Here, as the library below, so that forked processes need not import it again.

import lightning_scale.optim  # noqa: F401
from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant
from benchmarks.equations.hyper import TIMED
from benchmarks.gpu.apart import apart
from benchmarks.measure.race import Lane, race, warm_up
from benchmarks.measure.stopwatch import Sample, stopwatch_for
from benchmarks.parameter_sets import SETS
from benchmarks.parameter_sets.filled import filled

Step = Callable[[], object]
_QUEUED = 1 << 28  # Elements of a tensor whose copies keep a GPU busy: 1 GiB, far more than its cache holds.
_MOST_QUEUED = 500


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What a stage is asked for.

    Args:
        device: "cuda", or "cpu" for a rehearsal.
        parameters: The name of the set of parameters.
        seconds: How long it may take.
        names: Patterns of the names of contestants; all that are the stage's unless given.
    """

    device: torch.device
    parameters: str
    seconds: float
    names: tuple[str, ...]

    @classmethod
    def parsed(cls, arguments: Sequence[str] | None, description: str | None, names: Sequence[str]) -> Options:
        """From a command line."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("names", nargs="*", default=names, help="of rows of the benchmark; * stands for anything")
        parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
        parser.add_argument("--set", choices=SETS, default="bert-large", dest="parameters")
        parser.add_argument("--seconds", type=float, default=120.0)
        given = parser.parse_args(arguments)
        return cls(torch.device(given.device), given.parameters, given.seconds, tuple(given.names))


def each_apart(options: Options, work: Callable[[Contestant, float], bool]) -> bool:
    """Do work for each contestant that is asked for, each in a process of its own.

    Args:
        options: Who, and how long all together may take.
        work: Given one, and its part of the time; after twice that it is killed, so that one that never ends leaves time
            to the others. Returns whether all went well.

    Returns:
        Whether all went well with all.
    """
    ends = time.monotonic() + options.seconds
    asked = [c for c in everyone() if any(fnmatchcase(c.name, name) for name in options.names)]
    well = bool(asked)
    for number, contestant in enumerate(asked):
        seconds = max(1.0, ends - time.monotonic()) / (len(asked) - number)
        well &= apart(contestant.name, partial(work, contestant, seconds), 2 * seconds)
    return well


class Bench:
    """Random parameters on a device, and how a step on them is timed.

    Args:
        options: Say which parameters, and where.
        rounds: How often a step is timed; once where the device is a CPU.
    """

    def __init__(self, options: Options, rounds: int = 10) -> None:
        self.device = options.device
        self.parameters = filled(SETS[options.parameters], self.device, torch.float32)
        cuda = self.device.type == "cuda"
        self._rounds = rounds if cuda else 1
        self._stopwatch = stopwatch_for(self.device)
        self._target, self._source = (torch.ones(_QUEUED if cuda else 0, device=self.device) for _ in range(2))
        self._seconds_of_copy = median(s.seconds for s in self._samples({"copy": self._copy}, self.wait)["copy"])

    def optimizer(self, contestant: Contestant) -> Any:
        """A contestant's optimizer of the parameters."""
        return contestant.make(self.parameters, TIMED * contestant.claims.rate)

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self, step: Step) -> None:
        """Take steps until they no longer get quicker."""
        if self.device.type == "cuda":
            warm_up(Lane("step", step, self.wait), self._stopwatch)

    def host(self, step: Step, before: Step = _nothing) -> float:
        """The seconds until a step returns to a host that has waited for the device.

        Args:
            step: Takes it.
            before: Done before each, outside of the time.
        """

        def begin() -> None:
            before()
            self.wait()

        samples = self._samples({"step": step}, begin)["step"]
        return median(s.seconds if s.host_seconds is None else s.host_seconds for s in samples)

    def on_device(self, steps: Mapping[str, Step]) -> dict[str, list[float | None]]:
        """The seconds that steps take of the device, taken in turn, each behind so many copies that the host is ahead.

        Returns:
            By the step's name, for each round the seconds; None where the host was not ahead after all.

        Raises:
            RuntimeError: if it never was.
        """
        if self.device.type != "cuda":
            return {name: [s.seconds for s in samples] for name, samples in self._samples(steps, _nothing).items()}
        longest = max(self.host(step) for step in steps.values())
        copies = min(_MOST_QUEUED, 2 + ceil(2 * longest / self._seconds_of_copy))

        def queue() -> None:
            for _ in range(copies):
                self._copy()

        found: dict[str, list[float | None]] = {}
        for name, samples in self._samples(steps, queue).items():
            ahead = [s.host_seconds is not None and s.host_seconds < copies * self._seconds_of_copy for s in samples]
            found[name] = [s.seconds if was else None for s, was in zip(samples, ahead, strict=True)]
            if not any(ahead):
                raise RuntimeError(f"the host takes longer for a step than {copies} copies of 1 GiB do")
        return found

    def _copy(self) -> None:
        self._target.copy_(self._source)

    def _samples(self, steps: Mapping[str, Step], before: Step) -> dict[str, list[Sample]]:
        lanes = [Lane(name, step, before) for name, step in steps.items()]
        results = race(lanes, self._stopwatch, rounds=self._rounds)
        return {name: [s for s in samples if s is not None] for name, samples in results.items()}


def milliseconds(seconds: Iterable[float | None]) -> float:
    """The median of those that there are."""
    return 1000 * median(s for s in seconds if s is not None)


def in_one_line(error: BaseException) -> str:
    """An error for a row of a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
