"""A process that has imported what every rank imports, and forks one whenever it is asked to.

The modules that are being tested are imported here, nothing of them is run. What they read of the environment meanwhile is
the rank, so each rank has a zygote of its own; and its own seed of Python's hashes, as processes of their own have: the order
of a set differs between ranks.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np

import lightning_scale.cli  # noqa: F401
from tests.optim.triton.stand_in import bind_interpreted_launches


def serve(listener: socket.socket) -> dict[str, Any]:
    """Returns in the processes that are asked for, what is asked of them; ends where whoever started this has ended.

    A connection asks for one process. Its pid is answered, and its status in the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers below
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        with connection.makefile("rb") as file:
            request: dict[str, Any] = json.loads(file.readline())
        pid = os.fork()
        if pid == 0:
            connection.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return request
        connection.sendall(pid.to_bytes(4, "big"))
        _, status = os.waitpid(pid, 0)
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        os._exit(0)


def become(log: str, environment: dict[str, str], folder: str, command: list[str]) -> None:
    """Take on what a new process would have been started with."""
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, written, written)):
        os.dup2(file, number)
    os.close(written), os.close(nothing)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    np.random.seed()  # Python's own generator does so at a fork


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
        bind_interpreted_launches()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    become(asked["log"], asked["environment"], asked["folder"], asked["command"])
    module, name = asked["call"].split(":")
    getattr(importlib.import_module(module), name)(*asked["arguments"])


if __name__ == "__main__":
    main()
