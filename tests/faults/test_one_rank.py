"""One rank raises, hangs, leaves or is killed: all end soon, not as if all were well, and the first error is what is said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.distributed.meshes import needs_fsdp2
from tests.faults.run import LAUNCHERS, fault, said_in, write_config
from tests.faults.test_kill import alive
from tests.launch.demo import descendants, ended, logs, wait_until

RAISED = "rank {rank} raised ArithmeticError: the first thing that went wrong"
KILLED = "rank {rank} ended without a word"
HANGS = "rank {rank} has not gone on for 15 s after on_"
END = 45.0
"""Seconds from the first step to the end of all ranks, on a machine with other work: one of three seconds of grace, and
fifteen where a rank hangs."""
START = 120.0


def run(folder: Path, what: str, rank: int, launcher: str, strategy: str = "ddp") -> tuple[list[int], str]:
    """Statuses, and all that was said; every process must have ended in time."""
    hang = {"class_path": "lightning_scale.callbacks.FailTogether", "init_args": {"hang_seconds": 15.0}}
    config = write_config(folder, 8, [hang, fault(what, rank)])
    processes = LAUNCHERS[launcher](folder, config, strategy)
    pids: set[int] = set()

    def trains() -> bool:
        pids.update(pid for process in processes for pid in [process.pid, *descendants(process.pid)])
        return len(list(folder.glob("pid-*"))) == 2 or all(process.poll() is not None for process in processes)

    try:
        wait_until(trains, START)
        began = time.monotonic()
    finally:
        statuses = ended(processes, END)
    assert time.monotonic() - began < END, logs(folder)
    wait_until(lambda: not any(map(alive, pids)), END)
    return statuses, said_in(folder)


def check(folder: Path, what: str, rank: int, launcher: str, expected: str, strategy: str = "ddp") -> None:
    statuses, said = run(folder, what, rank, launcher, strategy)
    assert 0 not in statuses, said
    assert expected.format(rank=rank) in said, said
    other = f"[rank {1 - rank}] "
    first = [line for line in said.splitlines() if line.startswith(other)]
    assert first and expected.format(rank=rank) in first[0]
    # Tracebacks are those of the rank that failed; what the others saw of it stays unsaid.
    assert said.count("Traceback") == (what == "raise") + (launcher == "torchrun")
    if what == "raise":
        assert f"[rank{rank}]: ArithmeticError: the first thing that went wrong" in said
    if what == "hang":
        assert "time.sleep(3600)" in said  # where it hangs


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("what", "rank", "launcher", "expected"),
    [("raise", 1, "lightning", RAISED), ("hang", 1, "forks", HANGS), ("kill", 0, "lightning", KILLED)],
)
def test_one_of_each(tmp_path: Path, what: str, rank: int, launcher: str, expected: str) -> None:
    check(tmp_path, what, rank, launcher, expected)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("what", "expected"), [("raise", RAISED), ("hang", HANGS), ("kill", KILLED)])
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "nobody"])
def test_under_every_launcher(tmp_path: Path, launcher: str, what: str, rank: int, expected: str) -> None:
    if (
        launcher == "torchrun" and what == "kill"
    ):  # it ends the other rank in a tenth of a second, and names the killed one
        statuses, said = run(tmp_path, what, rank, launcher)
        assert statuses == [1]
        assert "SIGKILL" in said
        return
    check(tmp_path, what, rank, launcher, expected)


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["raise", "kill"])
@pytest.mark.parametrize("strategy", [pytest.param("fsdp2", marks=needs_fsdp2), "zero2"])
def test_under_sharding(tmp_path: Path, strategy: str, what: str) -> None:
    if strategy == "zero2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    check(tmp_path, what, 1, "nobody", RAISED if what == "raise" else KILLED, strategy)
