"""Forked processes are to tests what started ones are: folder, variables, output, status; and no two ranks are the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes.forks import Forked


def look() -> None:
    """Prints what a process can see of itself."""
    seen = {
        "folder": os.getcwd(),
        "variables": {name: os.environ.get(name) for name in ("MINE", "PATH", "RANK")},
        "command": sys.argv,
        "order of a set": hash("name"),
        "random": [random.random(), float(np.random.rand())],
    }
    print(json.dumps(seen))


def leave(how: str) -> None:
    if how == "raise":
        raise ArithmeticError("what went wrong")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sleep":
        time.sleep(3600)
    sys.exit(int(how))


def test_two_ranks(tmp_path: Path) -> None:
    both = []
    for rank in range(2):
        variables = {"MINE": "something", "RANK": str(rank)}
        process = Forked(
            f"{__name__}:look", [], tmp_path, tmp_path / f"{rank}.log", variables, rank, ["a command", "--option"]
        )
        assert process.wait(60) == 0
        both.append(json.loads((tmp_path / f"{rank}.log").read_text()))
    for rank, seen in enumerate(both):
        assert seen["folder"] == str(tmp_path)
        assert seen["variables"] == {"MINE": "something", "PATH": None, "RANK": str(rank)}
        assert seen["command"] == ["a command", "--option"]
    assert both[0]["order of a set"] != both[1]["order of a set"]
    assert len({number for seen in both for number in seen["random"]}) == 4


@pytest.mark.parametrize(
    ("how", "status"), [("0", 0), ("7", 7), ("raise", 1), ("kill", -signal.SIGKILL), ("sleep", -signal.SIGKILL)]
)
def test_statuses(how: str, status: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = Forked(f"{__name__}:leave", [how], tmp_path, log, dict(os.environ))
    if how == "sleep":
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert process.poll() is None
        process.kill()
    assert process.wait(60) == process.poll() == status
    assert ("ArithmeticError: what went wrong" in log.read_text()) == (how == "raise")
