"""Ports to listen on that nobody else takes in the meantime."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_FIRST, _USUAL_END = 10_000, 32_768
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port that is free now, below those that the system itself gives away: ranks open connections all the time, and one of
    the system's choice could be another test's before somebody listens on it."""
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _USUAL_END
    if end < 2 * _FIRST:  # this system gives nearly all away
        end = _USUAL_END
    draw = random.SystemRandom()  # tests seed the other one
    while True:
        port = draw.randrange(_FIRST, end)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
