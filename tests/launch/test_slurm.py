"""``examples/launch/slurm.sbatch`` with stand-ins for srun and scontrol: ranks, logs, the signal before the time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.demo import ROOT, ended, environment, logs, same, start, wait_until, weights, write_config
from tests.launch.slurm import SCONTROL, SRUN, VARIABLES

SCRIPT = ROOT / "examples/launch/slurm.sbatch"


def put_commands(folder: Path, **commands: str) -> str:
    """Write executables into ``folder/bin``; returns a PATH with that first."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in commands.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return os.pathsep.join([str(folder / "bin"), environment()["PATH"]])


def submit(folder: Path, slow_at: int | None = None) -> subprocess.Popen[bytes]:
    config = write_config(folder, slow_at=slow_at, save_every=100, more=["tests.launch.slurm.NoteEnvironment"])
    command = ["bash", str(SCRIPT), "--config", str(config), "--config", "strategies/ddp.yaml"]
    path = put_commands(folder, srun=SRUN, scontrol=SCONTROL)
    return start(command, folder, "job.log", PATH=path, **VARIABLES)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_job_goes_on_after_its_time_limit(tmp_path: Path) -> None:
    alone, job = tmp_path / "alone", tmp_path / "job"
    alone.mkdir(), job.mkdir()
    assert ended([submit(alone)]) == [0], logs(alone)
    assert not (alone / "scontrol.txt").exists()
    for rank in range(2):
        assert json.loads((alone / f"environment-{rank}.json").read_text()) == {
            "world_size": 2,
            "rank": rank,
            "node": rank,
            "local": 0,
            "address": "127.0.0.1",
            "port": 15000 + 4711,
            "on SIGUSR1": "SaveOnSignal._note",
            "on SIGTERM": "SaveOnSignal._note",
            "trainer": [2, 1, 2],
        }

    running = submit(job, slow_at=2)
    try:
        wait_until(lambda: all((job / f"started-{rank}").exists() for rank in range(2)))
        (line,) = [line for line in (job / "job.log").read_text().splitlines() if line.startswith("pids")]
        for pid in line.split()[1:]:
            os.kill(int(pid), signal.SIGUSR1)
    finally:
        statuses = ended([running], 60)
    assert statuses == [138], logs(job)
    assert (job / "scontrol.txt").read_text() == "requeue 124711\n"

    assert ended([submit(job)]) == [0], logs(job)
    assert (job / "scontrol.txt").read_text() == "requeue 124711\n"
    for rank in range(2):
        log = (job / f"logs/124711/rank-{rank}.log").read_text()
        assert log.count("Seed set to") == 2  # the restart appends
        assert weights(job, rank)["first"] in (3, 4)
        assert same(weights(job, rank)["weights"], weights(alone, rank)["weights"])
    assert "a fresh start" in (job / "logs/124711/rank-0.log").read_text()
    assert "signal-step=" in (job / "logs/124711/rank-0.log").read_text()


@pytest.mark.parametrize(
    ("status", "requeue_on", "again"),
    [(0, "", 0), (1, "", 0), (143, "", 0), (138, "", 1), (143, "138 143", 1)],
)
def test_which_statuses_queue_the_job_again(tmp_path: Path, status: int, requeue_on: str, again: int) -> None:
    path = put_commands(tmp_path, srun=f'#!/bin/sh\necho "$@" > srun.txt\nexit {status}\n', scontrol=SCONTROL)
    more = {"REQUEUE_ON": requeue_on} if requeue_on else {}
    job = start(["bash", str(SCRIPT), "--config", "a b.yaml"], tmp_path, "job.log", PATH=path, **VARIABLES, **more)
    assert ended([job], 20) == [status]
    asked = tmp_path / "scontrol.txt"
    assert (asked.read_text() if asked.exists() else "") == "requeue 124711\n" * again
    assert (
        (tmp_path / "srun.txt")
        .read_text()
        .endswith("lightning-scale fit --config a b.yaml --resume auto --trainer.num_nodes 2 --trainer.devices 1\n")
    )


@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_the_shell_can_read_it(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / "examples/launch" / script)], check=True, timeout=20)


def test_the_directives_fit_one_task_a_gpu_and_a_signal_that_is_handled() -> None:
    lines = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    options = dict(line.removeprefix("--").partition("=")[::2] for line in lines)
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].split("@")[0] == "USR1"  # without B: it goes to the ranks, not to the script
    assert {"requeue", "open-mode"} <= options.keys()
