"""SIGKILL at random moments, again and again, and the same command line each time: the bits of the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.distributed.meshes import needs_fsdp2
from tests.faults.run import Launcher, Processes, by_forks, by_lightning, said_in, same, write_config
from tests.launch.demo import descendants, ended, logs, wait_until

END = 45.0
"""Seconds for what is left of a run, where one of its ranks was killed."""


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def unfinished(folder: Path) -> set[tuple[str, int]]:
    """What of a checkpoint is there without a manifest, or beside its place; with the time of its last change."""
    entries = {path.name: path for path in folder.iterdir()} if folder.is_dir() else {}
    found = set()
    for name, path in entries.items():
        if name.endswith(".partial") or (name.endswith(".ckpt") and f"{name}.manifest.json" not in entries):
            with suppress(FileNotFoundError):
                found.add((name, path.stat().st_mtime_ns))
    return found


def newest(folder: Path) -> int:
    """The step of the newest checkpoint that has a manifest."""
    steps = [0]
    for path in (folder / "run/checkpoints").glob("*.ckpt.manifest.json"):
        with suppress(FileNotFoundError):  # removed meanwhile
            steps.append(json.loads(path.read_text())["step"])
    return max(steps)


def trains(folder: Path) -> bool:
    """Whether both ranks have taken a micro-batch since this start."""
    return all((folder / f"pid-{rank}").exists() for rank in range(2))


def kill_one_start(folder: Path, launch: Launcher, strategy: str, saves: int, draw: random.Random) -> str:
    """Start the run, let it save so often, wait a while, and kill one rank or both; returns what was done.

    Whoever is left must end by itself, and not as if all were well.
    """
    for path in folder.glob("pid-*"):
        path.unlink()
    processes = launch(folder, folder / "run.yaml", strategy)

    def over() -> bool:
        return any(process.poll() is not None for process in processes)

    try:
        before = newest(folder)
        wait_until(lambda: trains(folder) or over())
        wait_until(lambda: newest(folder) >= before + saves or over())
        assert not over(), logs(folder)
        pids = [pid for process in processes for pid in [process.pid, *descendants(process.pid)[:1]]]
        during, who = draw.random() < 0.4, draw.choice(([0], [1], [0, 1]))
        time.sleep(draw.uniform(0, 0.4))
        found, saved = False, folder / "run/checkpoints"
        stale = unfinished(saved)
        if during:
            end = time.monotonic() + 10
            while not (found := bool(unfinished(saved) - stale)) and time.monotonic() < end:
                pass
        for rank in who:
            os.kill(pids[rank], signal.SIGKILL)
        statuses = ended(processes, END)
        wait_until(lambda: not any(map(alive, pids)), END)
    finally:
        _kill(processes)
    assert 0 not in statuses
    return f"{'saving' if found else 'any'}-{''.join(map(str, who))}"


def _kill(processes: Processes) -> None:
    for process in processes:
        for pid in [*descendants(process.pid), process.pid]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def check_survives(root: Path, launch: Launcher, strategy: str, kills: int, steps: int, seed: int) -> None:
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    alone, killed = root / "alone", root / "killed"
    alone.mkdir(), killed.mkdir()
    write_config(alone, steps)
    assert set(ended(launch(alone, alone / "run.yaml", strategy))) == {0}, logs(alone)

    write_config(killed, steps, pause=0.1)
    draw = random.Random(seed)
    done = [kill_one_start(killed, launch, strategy, draw.choice((0, 1, 2)) if n else 1, draw) for n in range(kills)]
    assert not list(killed.glob("state-*")), "it was over before it was killed so often"
    assert set(ended(launch(killed, killed / "run.yaml", strategy), 200)) == {0}, logs(killed)
    print(strategy, done)
    assert said_in(killed).count("resume: going on from") == kills
    for rank in range(2):
        one, other = (torch.load(folder / f"state-{rank}.pt", weights_only=True) for folder in (alone, killed))
        assert one["step"] == other["step"] == steps
        assert one["state"]
        assert same(one, other)


@pytest.mark.timeout(600)
def test_three_times(tmp_path: Path) -> None:
    check_survives(tmp_path, by_forks, "ddp", kills=3, steps=30, seed=1)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_fsdp2), "zero2"])
def test_twenty_times(tmp_path: Path, strategy: str) -> None:
    kills = int(os.environ.get("KILLS", "20"))
    check_survives(tmp_path, by_lightning, strategy, kills, steps=8 * kills, seed=2)
