"""The BERT demo's own configuration, made tiny, started as users start it; and what its ranks end with."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from torch import Tensor

from tests.processes.forks import ROOT, Forked

BIN = Path(sys.executable).parent
_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "many", "words", "make", "one"]


class WriteWeights(L.Callback):
    """Every rank writes the whole weights that training ended with, and the number of the first step that it took."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.first = -1

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.first < 0:
            self.first = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = {name: _whole(p.detach()).clone() for name, p in pl_module.named_parameters()}
        torch.save({"weights": weights, "first": self.first}, self.folder / f"weights-{trainer.global_rank}.pt")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class Slow(L.Callback):
    """Each micro-batch takes a while, and ``started`` appears with the one of a step; so that a signal comes during training."""

    def __init__(self, folder: str, step: int, seconds: float = 0.2) -> None:
        self.folder, self.step, self.seconds = Path(folder), step, seconds

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            (self.folder / f"started-{trainer.global_rank}").touch()
            time.sleep(self.seconds)


def write_config(
    folder: Path, steps: int = 3, slow_at: int | None = None, save_every: int = 2, more: Sequence[str] = ()
) -> Path:
    """``examples/bert/two_stage.yaml`` with small numbers and a small text.

    Args:
        folder: Where everything goes.
        steps: In each of the two stages.
        slow_at: The step from which it is slow.
        save_every: Steps between two checkpoints.
        more: Class paths of callbacks that take the folder.
    """
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(20, 120))) + "." for _ in range(60)]
    (folder / "text.txt").write_text("\n\n".join(texts))
    content = yaml.safe_load((ROOT / "examples/bert/two_stage.yaml").read_text())
    content["model"]["init_args"] = {"layers": 2, "width": 16, "heads": 2, "max_positions": 32, "dropout": 0.1}
    content["data"]["init_args"] = {
        "files": [str(folder / "text.txt")], "vocab_size": 128, "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    run = content["trainer"]
    run["callbacks"] = [_tiny(entry, steps) for entry in run["callbacks"] if "RunReport" not in str(entry)]
    run["callbacks"] += [
        *(
            {"class_path": name, "init_args": {"folder": str(folder)}}
            for name in ("tests.launch.demo.WriteWeights", *more)
        ),
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"every_n_train_steps": save_every, "monitor": "step", "mode": "max", "save_top_k": 2},
        },
    ]
    if slow_at is not None:
        entry = {"class_path": "tests.launch.demo.Slow", "init_args": {"folder": str(folder), "step": slow_at}}
        run["callbacks"].append(entry)
    run["limit_val_batches"] = 2
    run["default_root_dir"] = str(folder / "run")
    file = folder / "demo.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _tiny(entry: Any, steps: int) -> Any:
    if isinstance(entry, dict):
        arguments = entry["init_args"]
        if entry["class_path"].endswith("SequenceLengthStages"):
            first, second = arguments["stages"]
            first.update(sequence_length=13, micro_batch_size=2, batch_size=16, steps=steps)
            second.update(sequence_length=24, micro_batch_size=2, batch_size=8, steps=steps)
        elif entry["class_path"].endswith("ValidateEvery"):
            arguments["interval"] = "2 steps"
        elif entry["class_path"].endswith("TrustRatioMonitor"):
            arguments["picture"] = False  # it takes longer than the training
    elif entry.endswith("StepProgressBar"):
        return {"class_path": entry, "init_args": {"refresh_rate": 0}}
    return entry


def environment(**more: str) -> dict[str, str]:
    """Of a new process: this tree first, no variables of another launcher."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TORCHELASTIC", "MASTER_", "PET_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    bins = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return {**kept, "PYTHONPATH": path, "PATH": bins, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


def start(command: list[str], folder: Path, log: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command, its output going to ``folder/log``."""
    with (folder / log).open("a") as file:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**variables),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def start_forked(command: list[str], folder: Path, log: str, rank: int = 0, **variables: str) -> Forked:
    """The same of a ``lightning-scale`` command, without waiting for imports."""
    arguments: list[str] = []  # it reads the command line
    return Forked("lightning_scale.cli:main", arguments, folder, folder / log, environment(**variables), rank, command)


def ended(processes: Sequence[subprocess.Popen[bytes] | Forked], timeout: float = 120) -> list[int]:
    """The statuses with which processes end; they and all that they have started are killed where that takes too long."""
    end = time.monotonic() + timeout
    try:
        return [process.wait(max(0.1, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                for pid in [process.pid, *descendants(process.pid)]:
                    os.kill(pid, signal.SIGKILL)
                process.wait()


def descendants(pid: int) -> list[int]:
    """What a process has started, and those: torchrun's ranks are in sessions of their own, and outlive it."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def wait_until(condition: Callable[[], bool], timeout: float = 90) -> None:
    """Fails where a condition does not come true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def weights(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a rank ended with."""
    content: dict[str, Any] = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
    return content


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all bits are equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logs(folder: Path) -> str:
    """The ends of all logs, for a failing test."""
    return "\n".join(f"--- {path}\n{path.read_text()[-2500:]}" for path in sorted(folder.rglob("*.log")))
