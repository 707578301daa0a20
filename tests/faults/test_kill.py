"""SIGKILL at random moments, again and again, and the same command line each time: the bits of the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.faults.run import by_lightning, same, write_config
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


def kill_one_start(folder: Path, strategy: str, saves: int, draw: random.Random) -> str:
    """Start the run, let it save so often, wait a while, and kill one rank or both; returns what was done.

    Whoever is left must end by itself, and not as if all were well.
    """
    for path in folder.glob("pid-*"):
        path.unlink()
    (main,) = by_lightning(folder, folder / "run.yaml", strategy)
    try:
        before = newest(folder)
        wait_until(lambda: trains(folder) or main.poll() is not None)
        wait_until(lambda: newest(folder) >= before + saves or main.poll() is not None)
        assert main.poll() is None, logs(folder)
        pids = [main.pid, *descendants(main.pid)[:1]]
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
        (status,) = ended([main], END)
        wait_until(lambda: not any(map(alive, pids)), END)
    finally:
        _kill(main)
    assert status != 0
    return f"{'saving' if found else 'any'}-{''.join(map(str, who))}"


def _kill(main: subprocess.Popen[bytes]) -> None:
    for pid in [*descendants(main.pid), main.pid]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def check_survives(root: Path, strategy: str, kills: int, steps: int, seed: int) -> None:
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    alone, killed = root / "alone", root / "killed"
    alone.mkdir(), killed.mkdir()
    write_config(alone, steps)
    assert ended(by_lightning(alone, alone / "run.yaml", strategy)) == [0], logs(alone)

    write_config(killed, steps, pause=0.1)
    draw = random.Random(seed)
    done = [kill_one_start(killed, strategy, draw.choice((0, 1, 2)) if n else 1, draw) for n in range(kills)]
    assert not list(killed.glob("state-*")), "it was over before it was killed so often"
    (main,) = by_lightning(killed, killed / "run.yaml", strategy)
    assert ended([main], 200) == [0], logs(killed)
    print(strategy, done)
    assert (killed / "all.log").read_text().count("resume: going on from") == kills
    for rank in range(2):
        one, other = (torch.load(folder / f"state-{rank}.pt", weights_only=True) for folder in (alone, killed))
        assert one["step"] == other["step"] == steps
        assert one["state"]
        assert same(one, other)


@pytest.mark.timeout(600)
def test_three_times(tmp_path: Path) -> None:
    check_survives(tmp_path, "ddp", kills=3, steps=30, seed=1)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_twenty_times(tmp_path: Path, strategy: str) -> None:
    kills = int(os.environ.get("KILLS", "20"))
    check_survives(tmp_path, strategy, kills, steps=8 * kills, seed=2)
