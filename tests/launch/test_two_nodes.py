"""``examples/launch/torchrun.sh`` as two nodes on this machine: the bits of two ranks on one node."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.launch.demo import ROOT, ended, logs, same, start, weights, write_config

SCRIPT = str(ROOT / "examples/launch/torchrun.sh")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run(folder: Path, strategy: str, nodes: int) -> None:
    """Two ranks, on so many nodes."""
    config = write_config(folder)
    variables = {
        "NNODES": str(nodes),
        "NPROC_PER_NODE": str(2 // nodes),
        "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}",
        "LOCAL_ADDR": "127.0.0.1",
        "MAX_RESTARTS": "0",
    }
    processes = [
        start(
            [SCRIPT, "--config", str(config), "--config", f"strategies/{strategy}.yaml"],
            folder,
            f"node-{node}.log",
            NODE_RANK=str(node),
            **variables,
        )
        for node in range(nodes)
    ]
    assert ended(processes, 300) == [0] * nodes, logs(folder)  # DeepSpeed may have to compile first


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_two_nodes_have_the_bits_of_one(tmp_path: Path, strategy: str) -> None:
    if strategy == "zero2" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    for nodes in (1, 2):
        (tmp_path / str(nodes)).mkdir()
        run(tmp_path / str(nodes), strategy, nodes)
    one, two = tmp_path / "1", tmp_path / "2"
    for rank in range(2):
        assert (two / f"logs/rank-{rank}.log").exists()
        assert same(weights(one, rank)["weights"], weights(two, rank)["weights"])
        assert same(weights(two, 0)["weights"], weights(two, rank)["weights"])
    assert "going on from" not in (two / "logs/rank-0.log").read_text()

    # The same command line once more: the run is over, and that is what it finds; a damaged checkpoint is passed over.
    saved = sorted((two / "run/checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name.split("step=")[1] for path in saved] == ["4.ckpt", "6.ckpt"]
    damage(saved[-1])
    before = weights(two)["weights"]
    run(two, strategy, 2)
    said = (two / "logs/rank-0.log").read_text()
    assert f"{saved[-1]} is not whole" in said
    assert f"going on from {saved[0]} (step 4)" in said
    assert weights(two)["first"] == 4
    assert same(weights(two)["weights"], before)


def damage(checkpoint: Path) -> None:
    """Change one byte in the middle of the largest file."""
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
