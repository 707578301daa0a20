"""Stand-ins for SLURM's commands, as far as ``examples/launch/slurm.sbatch`` and Lightning see them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import lightning.pytorch as L
from lightning.fabric.plugins.environments import SLURMEnvironment

SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[1 + next(i for i, arg in enumerate(sys.argv[1:]) if not arg.startswith("-")):]
options = dict(arg[2:].partition("=")[::2] for arg in sys.argv[1:len(sys.argv) - len(command)])
assert options["open-mode"] == "append", options
tasks = []
for task in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(task), "SLURM_NODEID": str(task), "SLURM_LOCALID": "0"}}
    log = open(options["output"].replace("%t", str(task)), "a")
    tasks.append(subprocess.Popen(command, env={{**os.environ, **own}}, stdout=log, stderr=log))
print("pids", *[task.pid for task in tasks], flush=True)
sys.exit(max(task.wait() % 256 for task in tasks))
"""
"""Two nodes with a task each, on this machine; the status is the highest of any task, as srun's is."""

SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\n'

VARIABLES = {
    "SLURM_JOB_ID": "124711",
    "SLURM_JOB_NAME": "lightning_scale",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "127.0.0.[1-2]",
}


class NoteEnvironment(L.Callback):
    """Each rank writes what Lightning makes of SLURM's variables, and who handles the signals."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        assert isinstance(environment, SLURMEnvironment)
        handlers = {name: getattr(signal.getsignal(name), "__qualname__", "") for name in signal.Signals}
        facts = {
            "world_size": environment.world_size(),
            "rank": environment.global_rank(),
            "node": environment.node_rank(),
            "local": environment.local_rank(),
            "address": environment.main_address,
            "port": environment.main_port,
            "on SIGUSR1": handlers[signal.SIGUSR1],
            "on SIGTERM": handlers[signal.SIGTERM],
            "trainer": [trainer.num_nodes, trainer.num_devices, trainer.world_size],
        }
        (self.folder / f"environment-{trainer.global_rank}.json").write_text(json.dumps(facts))
