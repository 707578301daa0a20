"""How long work takes, on a CPU and on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import torch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """One measurement."""

    seconds: float
    """From the work's begin to its end, on the device."""
    host_seconds: float | None = None
    """Until the call returned, where the device goes on without the host."""


class Stopwatch(Protocol):
    """Measures work on one device."""

    def now(self) -> float:
        """Seconds since some point in time, on the host."""

    def measure(self, work: Callable[[], object]) -> Sample:
        """Do it once."""


class CpuStopwatch:
    """By the host's clock.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Clock = perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock()

    def measure(self, work: Callable[[], object]) -> Sample:
        began = self._clock()
        work()
        return Sample(self._clock() - began)


class CudaStopwatch:
    """By events on the device's stream, which wait for what was queued before, such as a flush of its cache.

    The host runs ahead while that goes on, as it does behind a backward pass; where launches take longer than the flush,
    what the device then waits for the host is in the time.

    Args:
        device: The device.
        clock: Gives seconds, on the host.
    """

    def __init__(self, device: torch.device, clock: Clock = perf_counter) -> None:
        self._device, self._clock = device, clock

    def now(self) -> float:
        return self._clock()

    def measure(self, work: Callable[[], object]) -> Sample:
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        stream = torch.cuda.current_stream(self._device)
        start.record(stream)
        began = self._clock()
        work()
        returned = self._clock() - began
        end.record(stream)
        end.synchronize()
        return Sample(start.elapsed_time(end) / 1000, returned)


def stopwatch_for(device: torch.device) -> Stopwatch:
    """The device's."""
    return CudaStopwatch(device) if device.type == "cuda" else CpuStopwatch()
