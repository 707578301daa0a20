"""A small training, started by its command line on two ranks, and the faults that can be put into it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.data import ResumableBatchSampler
from tests.distributed.launch import rank_variables
from tests.launch.demo import BIN, start, start_forked
from tests.processes.forks import Forked
from tests.processes.ports import free_port

SAMPLES = 64


class Model(L.LightningModule):
    """Two layers in a list, with dropout."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, 8)])
        self.dropout = nn.Dropout(0.3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        for layer in self.layers:
            x = self.dropout(torch.tanh(layer(x)))
        return (x - 1).square().mean()


class Data(L.LightningDataModule):
    """Random vectors, in micro-batches of 2 for each rank."""

    def train_dataloader(self) -> DataLoader[Any]:
        vectors = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(vectors), batch_sampler=ResumableBatchSampler(SAMPLES, 2, seed=5))


class WriteState(L.Callback):
    """Each rank writes its share of weights and optimizer state at the end; and a file when training goes on."""

    def __init__(self, folder: str, pause: float = 0.0) -> None:
        self.folder, self.pause = Path(folder), pause

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        time.sleep(self.pause)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        (self.folder / f"pid-{trainer.global_rank}").write_text(f"{os.getpid()}\n")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        content = {"weights": _local(dict(pl_module.named_parameters())), "step": trainer.global_step}
        for optimizer in trainer.optimizers:
            inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's wrapper has ours inside
            content["state"] = _local(list(inner.state.values()))
        torch.save(content, self.folder / f"state-{trainer.global_rank}.pt")


def _local(value: Any) -> Any:
    """Tensors, wherever they are: this rank's share, copied."""
    if isinstance(value, Tensor):
        local = value.to_local() if hasattr(value, "to_local") else value
        return local.detach().clone()
    if isinstance(value, dict):
        return {str(key): _local(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_local(entry) for entry in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)


def same(one: Any, other: Any) -> bool:
    """Whether all bits are equal."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Fault(L.Callback):
    """At one micro-batch of one rank something happens."""

    def __init__(self, what: str, rank: int, step: int = 3) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            if self.what == "raise":
                raise ArithmeticError("the first thing that went wrong")
            if self.what == "hang":
                time.sleep(3600)
            if self.what == "exit":
                sys.exit(7)
            if self.what == "kill":
                os.kill(os.getpid(), 9)


def write_config(folder: Path, steps: int, more: Any = (), pause: float = 0.0, **model: Any) -> Path:
    """A configuration that saves after each step; callbacks in ``more`` come last."""
    saves = {"every_n_train_steps": 1, "monitor": "step", "mode": "max", "save_top_k": 2, "filename": "{step}"}
    content = {
        "seed_everything": 3,
        "model": {"class_path": "tests.faults.run.Model", "init_args": model},
        "data": {"class_path": "tests.faults.run.Data"},
        "optimizer": {"class_path": "lightning_scale.optim.LAMB", "init_args": {"lr": 0.01}},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "max_epochs": -1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                {"class_path": "lightning_scale.callbacks.GradientAccumulation", "init_args": {"batch_size": 8}},
                {"class_path": "lightning_scale.callbacks.ExactResume"},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saves},
                {
                    "class_path": "tests.faults.run.WriteState",
                    "init_args": {"folder": str(folder), "pause": pause},
                },
                *more,
            ],
        },
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def fault(what: str, rank: int, step: int = 3) -> dict[str, Any]:
    """A `Fault` for a configuration."""
    return {"class_path": "tests.faults.run.Fault", "init_args": {"what": what, "rank": rank, "step": step}}


def command(config: Path, strategy: str = "ddp") -> list[str]:
    """The one command line of first start and restarts."""
    return [
        str(BIN / "lightning-scale"), "fit", "--config", str(config), "--config", f"strategies/{strategy}.yaml",
        "--resume", "auto",
    ]  # fmt: skip


Processes = Sequence[subprocess.Popen[bytes] | Forked]
Launcher = Callable[..., Processes]

# -- launchers: each starts two ranks, and returns the processes whose end is the run's -------------------------------


def by_lightning(folder: Path, config: Path, strategy: str = "ddp") -> list[subprocess.Popen[bytes]]:
    """The command starts the second rank itself; both write to ``all.log``, as to one terminal."""
    return [start(command(config, strategy), folder, "all.log")]


def by_forks(folder: Path, config: Path, strategy: str = "ddp") -> list[Forked]:
    """Two ranks that import nothing; each has a log of its own, and nobody watches them."""
    port = free_port()
    return [
        start_forked(command(config, strategy), folder, f"rank-{rank}.log", rank, **rank_variables(rank, 2, port))
        for rank in range(2)
    ]


def by_torchrun(folder: Path, config: Path, strategy: str = "ddp") -> list[subprocess.Popen[bytes]]:
    options = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    run = [str(BIN / "torchrun"), *options, "--max-restarts", "0", "--local-addr", "127.0.0.1", "--no-python"]
    return [start([*run, *command(config, strategy)], folder, "all.log")]


def by_nobody(folder: Path, config: Path, strategy: str = "ddp") -> list[subprocess.Popen[bytes]]:
    """Two processes that nobody watches: less than SLURM does, which ends the others a minute after the first."""
    port = str(free_port())
    return [
        start(
            [*command(config, strategy), "--trainer.num_nodes", "2", "--trainer.devices", "1"],
            folder,
            f"rank-{rank}.log",
            SLURM_JOB_ID="4711",
            SLURM_JOB_NAME="run",
            SLURM_NNODES="2",
            SLURM_NTASKS="2",
            SLURM_NTASKS_PER_NODE="1",
            SLURM_NODELIST="127.0.0.1",
            SLURM_PROCID=str(rank),
            SLURM_NODEID=str(rank),
            SLURM_LOCALID="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]


LAUNCHERS: dict[str, Launcher] = {
    "forks": by_forks,
    "lightning": by_lightning,
    "torchrun": by_torchrun,
    "nobody": by_nobody,
}


def said_in(folder: Path) -> str:
    """All logs."""
    return "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
