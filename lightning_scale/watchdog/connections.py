"""Connects every rank to rank 0, by one connection over which lines of JSON go.

The end of a process ends its connection, however it ended: nobody has to wait for a timeout to learn of it.
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_CHUNK = 1 << 16  # bytes
_SEND = 10.0  # seconds that sending a line may take
_LONGEST = 1 << 20  # bytes of a line that has no end yet


class Connection:
    """A connection to one other rank that carries lines of JSON; reading does not wait."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._rest = b""
        self._come: list[dict[str, Any]] = []  # with the hello, before anybody asked

    def fileno(self) -> int:
        return self._link.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send one line; where the other side has gone, the next `receive` says so."""
        with suppress(OSError):
            self._link.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the lines that have come; None where nothing more will come."""
        if self._come:
            come, self._come = self._come, []
            return come
        try:
            content = self._link.recv(_CHUNK)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not content or len(self._rest) > _LONGEST:
            return None
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [json.loads(line) for line in lines]

    def hello(self) -> dict[str, Any] | None:
        """Return the first line, for which it waits; None where none comes. Lines that came with it are kept."""
        found: list[dict[str, Any]] | None = []
        end = time.monotonic() + _SEND
        while found == [] and time.monotonic() < end:
            found = self.receive()
        if not found:
            return None
        first, *self._come = found
        return first

    def close(self) -> None:
        self._link.close()


def connect(
    rank: int, ranks: int, address: str, broadcast: Callable[[Any], Any], seconds: float = 300.0, port: int = 0
) -> dict[int, Connection]:
    """Connect every rank with rank 0; called on all ranks.

    Rank 0 listens on a port while the others come. They show a word that only the process group was told.

    Args:
        rank: This process's rank.
        ranks: The number of ranks.
        address: The host at which the others find rank 0.
        broadcast: A function that gives all ranks what rank 0 passes to it.
        seconds: The time within which all ranks must connect.
        port: Where rank 0 listens; 0 for any that is free.

    Returns:
        Connections by rank: on rank 0 one with each other rank, on the others the one with rank 0.

    Raises:
        OSError: where the ranks do not find each other.
    """
    if rank == 0:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, backlog=ranks, dualstack_ipv6=both)
        _, word = broadcast((listener.getsockname()[1], secrets.token_hex(16)))
        try:
            return _accepted(listener, ranks, word, seconds)
        finally:
            listener.close()
    port, word = broadcast(None)
    try:
        link = socket.create_connection((address, port), timeout=seconds)
    except OSError as error:
        raise OSError(
            f"rank {rank} cannot reach FailTogether of rank 0 at {address}, port {port} ({error}): where only some ports are open"
            " between hosts, write one of them, FailTogether(port=...); it is another one than MASTER_PORT."
        ) from error
    link.settimeout(_SEND)
    connection = Connection(link)
    connection.send({"rank": rank, "word": word})
    return {0: connection}


def _accepted(listener: socket.socket, ranks: int, word: str, seconds: float) -> dict[int, Connection]:
    end = time.monotonic() + seconds
    found: dict[int, Connection] = {}
    while len(found) < ranks - 1:
        listener.settimeout(max(0.1, end - time.monotonic()))
        try:
            link, _ = listener.accept()
        except TimeoutError:
            missing = sorted(set(range(1, ranks)) - found.keys())
            raise TimeoutError(f"ranks {missing} have not connected to rank 0 within {seconds:.0f} s") from None
        link.settimeout(_SEND)
        connection = Connection(link)
        try:
            hello = connection.hello()
        except ValueError:
            hello = None
        if isinstance(hello, dict) and hello.get("word") == word:
            found[int(hello["rank"])] = connection
        else:
            connection.close()  # a stranger
    return found
