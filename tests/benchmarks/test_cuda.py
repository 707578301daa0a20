"""What is done on CUDA devices: on one where there is one, and on stand-ins elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.contestants import everyone
from benchmarks.measure import launches
from benchmarks.measure.launches import kernels
from benchmarks.measure.memory import peak_extra_bytes
from benchmarks.measure.stopwatch import CudaStopwatch, Sample
from benchmarks.run import run
from benchmarks.settings import Settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bf16-master"])
def test_a_run_on_a_device(dtype: str) -> None:
    settings = Settings(parameters="tiny", device="cuda", dtype=dtype, rounds=5, seconds=20, copy_mib=64, flush_mib=64)
    chosen = [c for c in everyone() if c.package in ("torch", "lightning_scale")]
    report = run(settings, chosen)
    for row in report.runs[0].rows:
        if row.status == "missing":
            assert row.reason.startswith("not available") or "master weights" in row.reason, row
            continue
        assert row.status == "measured", row
        assert row.kernels and row.host_seconds and row.extra_bytes_per_element is not None
        assert row.triton_launches is None or row.triton_launches <= row.kernels
    assert {r.status for r in report.runs[0].rows if r.name in ("LAMB fused=True", "LARS fused=True")} == {"measured"}


class Event:
    """In place of torch.cuda.Event; the device's clock is a list."""

    queue: list[object]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.place = -1

    def record(self, stream: object) -> None:
        self.queue.append(self)

    def synchronize(self) -> None:
        self.queue.append("waited")

    def elapsed_time(self, other: Event) -> float:
        assert self.queue == [self, "work", other, "waited"]
        return 2.5  # milliseconds


def test_events_are_around_the_work_and_the_host_is_timed_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    Event.queue = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    clock = iter([10.0, 10.25])
    stopwatch = CudaStopwatch(CUDA, lambda: next(clock))
    assert stopwatch.measure(lambda: Event.queue.append("work")) == Sample(0.0025, 0.25)


def test_what_counts_as_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [("CUDA", "_moments", False), ("CUDA", "Memcpy HtoD", False), ("CUDA", "Memset (Device)", False)]
    seen += [("CUDA", "Optimizer.step#LAMB.step", True), ("CPU", "aten::add", False), ("CUDA", "multi_tensor", False)]
    events = [SimpleNamespace(device_type=SimpleNamespace(name=d), name=n, is_user_annotation=a) for d, n, a in seen]

    class Profile:
        def __init__(self, activities: object) -> None: ...
        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *error: object) -> None: ...
        def events(self) -> list[SimpleNamespace]:
            return events

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(launches, "profile", Profile)
    steps = []
    assert kernels(lambda: steps.append(1), CUDA) == 2
    assert steps == [1]


def test_a_cpu_counts_neither_kernels_nor_memory() -> None:
    assert kernels(lambda: pytest.fail("no step is needed"), CPU) is None
    assert peak_extra_bytes(lambda: pytest.fail("no step is needed"), CPU) is None
