"""Run a function of a test file on gloo processes, with a time limit, and fetch what each rank returns."""

from __future__ import annotations

import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from tests.processes.forks import ROOT, Forked, zygote
from tests.processes.ports import free_port


def work(module: str, function: str, folder: str) -> None:
    """What a rank does."""
    torch.set_num_threads(1)
    result = getattr(importlib.import_module(module), function)(folder)
    torch.save(result, os.path.join(folder, "rank" + os.environ["LOCAL_RANK"] + ".pt"))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    os._exit(0)  # gloo sometimes aborts a process that has done all its work


def rank_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What a launcher on one machine tells a rank."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",  # Lightning then takes ranks from the environment
    }


def start_ranks(module: str, function: str, folder: Path, world_size: int) -> list[Forked]:
    """Start ``module.function(folder)`` on every rank of a new process group."""
    for rank in range(world_size):  # together: the first time they import
        zygote(rank)
    port, ranks = free_port(), []
    for rank in range(world_size):
        log = folder / f"rank{rank}.log"
        log.write_bytes(b"")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **rank_variables(rank, world_size, port)}
        ranks.append(Forked(f"{__name__}:work", [module, function, str(folder)], folder, log, environment, rank))
    return ranks


def run_ranks(module: str, function: str, folder: Path, world_size: int = 2, timeout: float = 120) -> list[Any]:
    """Call ``module.function(folder)`` on every rank of a new process group.

    Args:
        module: Importable from the repository's root.
        function: Takes the folder's path; what it returns must be loadable with weights_only.
        folder: Where ranks write.
        world_size: Number of processes on this machine.
        timeout: Seconds until a hang fails.

    Returns:
        Each rank's result.
    """
    ranks = start_ranks(module, function, folder, world_size)
    try:
        for process in ranks:
            process.wait(timeout)
    finally:
        for process in ranks:
            process.kill()
    results = []
    for rank in range(world_size):
        file = folder / f"rank{rank}.pt"
        assert file.exists(), (folder / f"rank{rank}.log").read_text()[-4000:]
        results.append(torch.load(file, weights_only=True))
    return results


def run_killed(module: str, function: str, folder: Path, world_size: int = 2, timeout: float = 120) -> None:
    """The same where a rank kills itself with SIGKILL: the others are killed too, as a cluster's scheduler does."""
    ranks = start_ranks(module, function, folder, world_size)
    try:
        end = time.monotonic() + timeout
        while all(process.poll() is None for process in ranks) and time.monotonic() < end:
            time.sleep(0.02)
        ended = [process.poll() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert -signal.SIGKILL in ended, (ended, (folder / "rank0.log").read_text()[-4000:])
