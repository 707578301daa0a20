"""Runs that are ended by SIGKILL, again and again, and started anew each time: the bits of the uninterrupted run."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import BatchSizeRamp, ExactResume, GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.schedule import BatchSizeSchedule, ConstantBatchSize, parse_schedule
from tests.distributed.launch import run_killed, run_ranks
from tests.distributed.ranks import ddp_options
from tests.toys import Net, trainer
from tests.window.batches import exact_batches

SAMPLES, EPOCHS = 45, 3
RAMP = "0:6 20:11 60:8"
"""On one rank with micro-batches of 4 and on two with 2, windows are of these numbers of micro-batches, from 0 on:
epoch 1: 0-1, 2-3, 4-5, 6-7, 8-10, 11-13; epoch 2: 14-16, 17-19, 20-21, 22-23, 24-25; epoch 3 begins with 26-27."""


@dataclass(frozen=True)
class Start:
    """One start of a run that has perhaps been started before."""

    ranks: int
    batches: str
    number: int = 0
    """How often it was started before: each start has another seed, so that nothing can come from there."""
    ckpt: str | None = None
    kill_after: int | None = None
    """The micro-batch, counted over epochs, after which the process dies."""
    how: str = ""
    """"saved": after checkpoints were written; "unsaved": before; "writing": while one is written, and half of it is
    there; "save": before, but a checkpoint is asked for first, also inside a window."""
    who: int | None = None
    """The rank that dies; None for all."""

    @property
    def schedule(self) -> BatchSizeSchedule:
        return ConstantBatchSize(int(self.batches)) if self.batches.isdigit() else parse_schedule(self.batches)

    def owner(self) -> L.Callback:
        if self.batches.isdigit():
            return GradientAccumulation(int(self.batches))
        return BatchSizeRamp(self.schedule, lr_scaling="sqrt")


# -- in the process that dies ------------------------------------------------------------------------------------------


class Seen(L.Callback):
    """Writes the indices of every micro-batch of every step to a file, a line a step."""

    def __init__(self, path: Path) -> None:
        self.path, self.indices = path, list[list[int]]()

    def on_train_batch_start(self, fit: L.Trainer, module: L.LightningModule, batch: list[Tensor], *args: Any) -> None:
        self.indices.append(batch[1].tolist())

    def on_before_optimizer_step(self, fit: L.Trainer, *args: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([fit.global_step, self.indices]) + "\n")
        self.indices = []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(Net):
    """Dropout of 0.3, and an end."""

    def __init__(self, start: Start) -> None:
        super().__init__(self._optimizers, dropout=0.3)
        self.start = start

    def due(self, how: str) -> bool:
        start, fit = self.start, self.trainer
        after = start.how == how and fit.fit_loop.total_batch_idx == start.kill_after
        return after and start.who in (None, fit.global_rank)

    def on_train_batch_end(self, *args: Any) -> None:
        if self.due("saved"):  # a module's hook comes after all callbacks'
            die()

    @staticmethod
    def _optimizers(module: L.LightningModule) -> Any:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class DieUnsaved(L.Callback):
    """Comes before ModelCheckpoint, which Lightning puts last."""

    def on_train_batch_end(self, fit: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        assert isinstance(module, Dying)
        if module.due("save"):
            fit.save_checkpoint(Path(fit.default_root_dir) / "checkpoints" / "asked.ckpt")
        if module.due("unsaved") or module.due("save"):
            die()


class HalfWritten(TorchCheckpointIO):
    """A disk that has half of a file when the power goes."""

    def __init__(self, module: Dying) -> None:
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if self.module.due("writing"):
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            Path(path).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            die()
        super().save_checkpoint(checkpoint, path, storage_options)


def train(folder: str) -> dict[str, Any]:
    """What ``start.json`` says."""
    root, rank = Path(folder), int(os.environ.get("RANK", "0"))
    start = Start(**json.loads((root / "start.json").read_text()))
    L.seed_everything(10 * start.number + rank, verbose=False)
    module = Dying(start)
    vectors = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
    sampler = ResumableBatchSampler(SAMPLES, 4 // start.ranks, seed=5)
    loader = DataLoader(TensorDataset(vectors, torch.arange(SAMPLES)), batch_sampler=sampler)
    save = ModelCheckpoint(root / "checkpoints", "{step}", every_n_train_steps=1, save_top_k=-1)
    fit = trainer(
        root,
        [DieUnsaved(), start.owner(), ExactResume(), Seen(root / f"seen-{start.number}-{rank}"), save],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        plugins=[HalfWritten(module)],
        **ddp_options(),
    )
    fit.fit(module, loader, ckpt_path=start.ckpt)
    return {"weights": [p.detach().clone() for p in module.parameters()], "steps": fit.global_step}


# -- in the test -------------------------------------------------------------------------------------------------------


def begin(root: Path, start: Start) -> list[dict[str, Any]]:
    """Run ``start``: until it dies where it is to die, else to the end."""
    (root / "start.json").write_text(json.dumps(asdict(start)))
    if start.kill_after is None:
        return run_ranks(__name__, "train", root, start.ranks, timeout=60)
    run_killed(__name__, "train", root, start.ranks, timeout=60)
    return []


def seen(root: Path, number: int, rank: int) -> dict[int, list[list[int]]]:
    """The micro-batches of every step of one start."""
    path = root / f"seen-{number}-{rank}"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return dict(lines)


def whole_checkpoints(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Those that can be read, the newest last."""
    files = []
    for path in sorted((root / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        try:
            files.append((path, torch.load(path, weights_only=True)))
        except (OSError, RuntimeError, EOFError):
            continue
    return files


def check_lies_at_a_windows_end(checkpoint: dict[str, Any], sizes: list[int], micro_batches: list[int]) -> None:
    """The samples are those of whole batches, and the micro-batches counted too."""
    done = checkpoint["global_step"]
    (samples,) = (state["samples"] for state in checkpoint["callbacks"].values() if "samples" in state)
    assert samples == sum(sizes[:done])
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["total"]["ready"] == sum(micro_batches[:done])


def check_survives(root: Path, first: Start, kills: list[tuple[int, str, int | None]]) -> None:
    """Start, be killed, start anew from the newest whole checkpoint, ..., and end as the uninterrupted run ends."""
    alone, killed = root / "alone", root / "killed"
    alone.mkdir(), killed.mkdir()
    whole = begin(alone, first)
    batches = exact_batches(first.schedule, SAMPLES, EPOCHS, "step", first.ranks)
    sizes = [len(batch) for batch in batches]
    assert whole[0]["steps"] == len(sizes)
    reference = [seen(alone, 0, rank) for rank in range(first.ranks)]
    for step, size in enumerate(sizes):
        assert sum(len(part) for rank in reference for part in rank[step]) == size

    ckpt: Path | None = None
    for number, (kill_after, how, who) in enumerate(kills):
        begin(killed, Start(first.ranks, first.batches, number, ckpt and str(ckpt), kill_after, how, who))
        files = whole_checkpoints(killed)
        for _, checkpoint in files:
            check_lies_at_a_windows_end(checkpoint, sizes, [len(reference[0][step]) for step in range(len(sizes))])
        broken = len(list((killed / "checkpoints").iterdir())) - len(files)
        assert broken == sum(how == "writing" for _, how, _ in kills[: number + 1])
        ckpt = files[-1][0]
        assert (ckpt.name == "asked.ckpt") == (how == "save")
    rest = begin(killed, Start(first.ranks, first.batches, len(kills), str(ckpt)))

    for rank, (mine, theirs) in enumerate(zip(rest, whole, strict=True)):
        assert mine["steps"] == theirs["steps"]
        assert all(torch.equal(a, b) for a, b in zip(mine["weights"], theirs["weights"], strict=True))
        steps = [seen(killed, number, rank) for number in range(len(kills) + 1)]
        for start in steps:
            assert start == {step: reference[rank][step] for step in start}
        assert {step for start in steps for step in start} == set(range(len(sizes)))


@pytest.mark.timeout(300)
def test_one_process(tmp_path: Path) -> None:
    """At a window's end, inside one, while a checkpoint is written, and at an epoch's end."""
    kills: list[tuple[int, str, int | None]] = [
        (3, "unsaved", None),
        (9, "save", None),
        (19, "writing", None),
        (25, "saved", None),
    ]
    check_survives(tmp_path, Start(1, RAMP), kills)


@pytest.mark.timeout(300)
def test_a_constant_batch(tmp_path: Path) -> None:
    """Windows of two micro-batches, and one of 5 samples at each epoch's end, 10-11, where the second kill is."""
    check_survives(tmp_path, Start(1, "8"), [(6, "unsaved", None), (23, "unsaved", None)])


@pytest.mark.timeout(300)
def test_two_ranks(tmp_path: Path) -> None:
    """Both inside a window; then one at a window's end, while the other waits for it to save."""
    check_survives(tmp_path, Start(2, RAMP), [(9, "save", None), (19, "unsaved", 1)])
