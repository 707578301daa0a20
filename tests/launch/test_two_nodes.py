"""``examples/launch/torchrun.sh``: two nodes on this machine have the bits of two ranks on one; ranks are started anew."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from subprocess import Popen

import pytest

from tests.distributed.meshes import needs_fsdp2
from tests.launch.demo import ROOT, descendants, ended, logs, same, start, wait_until, weights, write_config
from tests.processes.ports import free_port

SCRIPT = str(ROOT / "examples/launch/torchrun.sh")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]


def launch(
    folder: Path, strategy: str, nodes: int, restarts: int = 0, slow_at: int | None = None
) -> list[Popen[bytes]]:
    """Start two ranks, on so many nodes."""
    config = write_config(folder, slow_at=slow_at)
    variables = {
        "NNODES": str(nodes),
        "NPROC_PER_NODE": str(2 // nodes),
        "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}",
        "LOCAL_ADDR": "127.0.0.1",
        "MAX_RESTARTS": str(restarts),
    }
    return [
        start(
            [SCRIPT, "--config", str(config), "--config", f"strategies/{strategy}.yaml"],
            folder,
            f"node-{node}.log",
            NODE_RANK=str(node),
            **variables,
        )
        for node in range(nodes)
    ]


def run(folder: Path, strategy: str, nodes: int) -> None:
    """Two ranks, to their end."""
    processes = launch(folder, strategy, nodes)
    assert ended(processes, 300) == [0] * nodes, logs(folder)  # DeepSpeed may have to compile first


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_fsdp2), "zero2"])
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


def test_ranks_that_have_ended_early_are_started_anew(tmp_path: Path) -> None:
    """SIGTERM to a rank alone: all save and end, and torchrun starts them where they were."""
    alone, signalled = tmp_path / "alone", tmp_path / "signalled"
    alone.mkdir(), signalled.mkdir()
    run(alone, "ddp", 1)
    processes = launch(signalled, "ddp", 1, restarts=1, slow_at=3)
    try:
        wait_until(lambda: all((signalled / f"started-{rank}").exists() for rank in range(2)))
        os.kill(descendants(processes[0].pid)[-1], signal.SIGTERM)
    finally:
        statuses = ended(processes, 120)
    assert statuses == [0], logs(signalled)
    assert "going on from" in (signalled / "logs/rank-0.log").read_text()
    for rank in range(2):
        assert weights(signalled, rank)["first"] in (4, 5)
        assert same(weights(signalled, rank)["weights"], weights(alone, rank)["weights"])


def damage(checkpoint: Path) -> None:
    """Change one byte in the middle of the largest file."""
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
