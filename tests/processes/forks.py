"""Start processes by forking a zygote: in hundredths of a second, where importing torch and Lightning takes many."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Zygote:
    """One of those that this process has started; they end when it does."""

    def __init__(self, rank: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zygote")
        folder = Path(self._folder.name)
        self.log, self.address = folder / "log", str(folder / "socket")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",  # it is read when torch is imported
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the other check leaves CUDA in a state that a fork cannot use
        }
        with socket.socket(socket.AF_UNIX) as listener, self.log.open("wb") as log:
            listener.bind(self.address)
            listener.listen(64)
            command = [sys.executable, "-m", "tests.processes.zygote", str(listener.fileno())]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip


zygote = cache(Zygote)
"""The one of a rank, for as long as the tests run."""


class Forked:
    """A process, with the methods of ``subprocess.Popen`` that tests use.

    Args:
        call: "module:function"; what is called in the process.
        arguments: Of the function.
        folder: Where the process works.
        log: What its output is added to.
        environment: Its variables.
        rank: Whose zygote is forked.
        command: Its command line, as far as it looks at that.
    """

    def __init__(
        self,
        call: str,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        environment: dict[str, str],
        rank: int = 0,
        command: Sequence[str] = ("",),
    ) -> None:
        self._from = zygote(rank)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(self._from.address)
        asked = {
            "call": call,
            "arguments": list(arguments),
            "folder": str(folder),
            "log": str(log),
            "environment": environment,
            "command": list(command),
        }
        self._connection.sendall(json.dumps(asked).encode() + b"\n")
        self.pid = self._answer()
        self._status: int | None = None

    def _answer(self) -> int:
        content = self._connection.recv(4, socket.MSG_WAITALL)
        if len(content) < 4:
            raise RuntimeError(f"the process that forks others has ended: {self._from.log.read_text()[-4000:]}")
        return int.from_bytes(content, "big", signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """The status, as ``subprocess`` gives it; raises ``subprocess.TimeoutExpired``."""
        if self._status is None:
            ready, _, _ = select.select([self._connection], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self._status = self._answer()
            self._connection.close()
        return self._status

    def poll(self) -> int | None:
        """The status, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
