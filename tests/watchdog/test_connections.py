"""Connections of ranks, here threads of one process."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lightning_scale.watchdog.connections import Connection, connect
from tests.processes.ports import free_port


class Broadcast:
    """What rank 0 passes, all get."""

    def __init__(self) -> None:
        self.said, self.is_said = None, threading.Event()

    def __call__(self, value: Any) -> Any:
        if value is not None:
            self.said = value
            self.is_said.set()
        assert self.is_said.wait(20)
        return self.said


def received(connection: Connection) -> list[dict[str, Any]] | None:
    """The first that comes."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if (messages := connection.receive()) != []:
            return messages
    raise AssertionError("nothing came")


def test_lines_go_both_ways_and_an_end_is_seen() -> None:
    broadcast = Broadcast()
    with ThreadPoolExecutor(3) as pool:
        ranks = list(pool.map(lambda rank: connect(rank, 3, "127.0.0.1", broadcast, 20), range(3)))
    assert [set(links) for links in ranks] == [{1, 2}, {0}, {0}]
    ranks[2][0].send({"a": "ü\n"})
    assert received(ranks[0][2]) == [{"a": "ü\n"}]
    ranks[0][1].send({"b": 1})
    ranks[0][1].send({"c": 2})
    assert received(ranks[1][0])[0] == {"b": 1}
    ranks[1][0].close()
    assert received(ranks[0][1]) is None
    ranks[0][1].send({"to": "nobody"})  # no error
    for links in ranks:
        for connection in links.values():
            connection.close()


def test_a_stranger_is_no_rank() -> None:
    broadcast = Broadcast()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(connect, 0, 2, "127.0.0.1", broadcast, 20)
        port, _ = broadcast(None)
        for line in (b'{"rank": 1, "word": "guess"}\n', b"GET / HTTP/1.1\r\n\r\n"):
            stranger = socket.create_connection(("127.0.0.1", port), 20)
            stranger.sendall(line)
            assert stranger.recv(1) == b""  # shut out
            stranger.close()
        second = connect(1, 2, "127.0.0.1", broadcast, 20)
        second[0].send({"mine": 1})
        assert received(first.result(20)[1]) == [{"mine": 1}]


def test_nothing_is_lost_that_comes_with_the_hello_and_a_hello_may_come_in_parts() -> None:
    broadcast = Broadcast()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(connect, 0, 2, "127.0.0.1", broadcast, 20)
        port, word = broadcast(None)
        link = socket.create_connection(("127.0.0.1", port), 20)
        hello = json.dumps({"rank": 1, "word": word}).encode()
        link.sendall(hello[:7])
        time.sleep(0.3)
        link.sendall(hello[7:] + b'\n{"mine": 1}\n{"mine": 2}\n')
        ranks = first.result(20)
    assert received(ranks[1]) == [{"mine": 1}, {"mine": 2}]
    link.close()
    assert received(ranks[1]) is None


def test_who_did_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[1, 2\] have not connected to rank 0 within 0 s"):
        connect(0, 3, "127.0.0.1", Broadcast(), 0.2)


def test_a_port_can_be_given_and_one_that_is_closed_is_named() -> None:
    port = free_port()
    broadcast = Broadcast()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(connect, 0, 2, "127.0.0.1", broadcast, 20, port)
        second = threads.submit(connect, 1, 2, "127.0.0.1", broadcast, 20)
        assert list(first.result()) == [1] and list(second.result()) == [0]
    assert broadcast.said[0] == port
    closed = Broadcast()
    closed((free_port(), "word"))
    with pytest.raises(OSError, match=rf"rank 1 cannot reach .* port {closed.said[0]} .*FailTogether\(port=...\)"):
        connect(1, 2, "127.0.0.1", lambda value: closed.said, 20)
