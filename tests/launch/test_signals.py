"""A signal to one rank or to all: a checkpoint, the documented status, and the same command line ends with the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.distributed.launch import rank_variables
from tests.distributed.meshes import needs_fsdp2
from tests.launch.demo import ended, logs, same, start_forked, wait_until, weights, write_config
from tests.processes.forks import Forked
from tests.processes.ports import free_port

pytestmark = pytest.mark.timeout(400)


def begin(folder: Path, ranks: int, strategy: str = "ddp", slow_at: int | None = None) -> list[Forked]:
    """Start the command on so many ranks, each a process of this one."""
    command = ["lightning-scale", "fit", "--config", str(write_config(folder, slow_at=slow_at, save_every=100))]
    if ranks > 1:
        command += ["--config", f"strategies/{strategy}.yaml"]
    port = free_port()
    return [
        start_forked(
            [*command, "--resume", "auto"], folder, f"rank-{rank}.log", rank,
            **(rank_variables(rank, ranks, port) if ranks > 1 else {}),
        )
        for rank in range(ranks)
    ]  # fmt: skip


Alone = Callable[[int, str], Path]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The folder of a run that is left alone, for so many ranks and a strategy."""

    @cache
    def run(ranks: int, strategy: str) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        assert ended(begin(folder, ranks, strategy)) == [0] * ranks, logs(folder)
        return folder

    return run


def check(alone: Path, stopped: Path, ranks: int, strategy: str, sent: signal.Signals, to: list[int]) -> None:
    """A run that is signalled while it takes its third step, and goes on, against one that is left alone."""
    processes = begin(stopped, ranks, strategy, slow_at=2)
    try:
        wait_until(lambda: all((stopped / f"started-{rank}").exists() for rank in range(ranks)))
        for rank in to:
            os.kill(processes[rank].pid, sent)
    finally:
        statuses = ended(processes, 60)
    assert statuses == [128 + sent] * ranks, logs(stopped)
    assert not (stopped / "weights-0.pt").exists()
    (saved,) = (stopped / "run/checkpoints").glob("*.ckpt")
    step = int(saved.stem.removeprefix("signal-step="))
    assert step in (3, 4)  # that step, or the next where the signal came between

    assert ended(begin(stopped, ranks, strategy)) == [0] * ranks, logs(stopped)
    assert f"going on from {saved} (step {step})" in (stopped / "rank-0.log").read_text()
    for rank in range(ranks):
        content = weights(stopped, rank)
        assert content["first"] == step
        assert same(content["weights"], weights(alone, rank)["weights"])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process(alone: Alone, tmp_path: Path, sent: signal.Signals) -> None:
    check(alone(1, ""), tmp_path, 1, "", sent, [0])


@pytest.mark.parametrize(
    "to", [[0], pytest.param([1], marks=pytest.mark.slow), [0, 1]], ids=["rank 0", "rank 1", "all"]
)
def test_two_ranks(alone: Alone, tmp_path: Path, to: list[int]) -> None:
    check(alone(2, "ddp"), tmp_path, 2, "ddp", signal.SIGTERM, to)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [pytest.param("fsdp2", marks=needs_fsdp2), "zero2"])
def test_sharded(alone: Alone, tmp_path: Path, strategy: str) -> None:
    """Rank 1 alone."""
    if strategy == "zero2" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    check(alone(2, strategy), tmp_path, 2, strategy, signal.SIGTERM, [1])
