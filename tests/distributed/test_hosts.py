"""What goes between hosts beside the process group."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale import hosts
from tests.distributed.launch import run_ranks


def collecting_ranks(folder: str) -> list[Any]:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    own = [
        torch.full((3, 2), float(rank)),
        torch.full((5,), rank, dtype=torch.bfloat16)[::2],
        torch.zeros(0, dtype=torch.uint8),
        torch.tensor(7 + rank),
    ]
    found = hosts.collected(own[: 4 - rank], {"rank": rank})
    return [] if found is None else [[described, tensors] for described, tensors in found]


@pytest.mark.parametrize("world", [2, 3])
def test_tensors_come_whole_and_in_order(world: int, tmp_path: Path) -> None:
    first, *others = run_ranks(__name__, "collecting_ranks", tmp_path, world)
    assert others == [[]] * (world - 1)
    assert [described["rank"] for described, _ in first] == list(range(world))
    for rank, (_, tensors) in enumerate(first):
        assert len(tensors) == 4 - rank
        assert torch.equal(tensors[0], torch.full((3, 2), float(rank)))
        if rank < 3:
            assert torch.equal(tensors[1], torch.full((3,), rank, dtype=torch.bfloat16))
        if rank < 2:
            assert tensors[2].shape == (0,) and tensors[2].dtype == torch.uint8


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, None),
        ("^docker", None),
        ("ib", "ib0"),
        ("=ib0", "ib0"),
        ("=ib", None),
        ("eth1,eth0", "eth0"),
        ("none", None),
    ],
)
def test_gloo_takes_the_interface_that_nccl_was_told(
    wanted: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    if wanted is not None:
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", wanted)
    assert hosts.interface_of_nccl() == expected
