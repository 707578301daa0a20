"""A disk that is full while a checkpoint is written: training stops and says so, and goes on where the last whole one is."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

from tests.distributed.meshes import needs_fsdp2
from tests.faults.run import Launcher, by_forks, by_lightning, said_in, same, write_config
from tests.launch.demo import ended, logs

WIDTH = 4096
"""A checkpoint is then of 0.9 MB: weights, and two moments of LAMB."""


class SmallFiles(L.Callback):
    """From a step on, no file of rank 0 may become larger than 100 kB: a full disk, without a disk of its own."""

    def __init__(self, step: int = 2) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == self.step and trainer.is_global_zero:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


@pytest.fixture
def disk(tmp_path: Path, strategy: str) -> Iterator[Path]:
    """A file system in memory with room for two checkpoints and not for three."""
    size = "3000k" if strategy == "zero2" else "2200k"  # ZeRO's have the weights twice
    folder = tmp_path / "full" / "run"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, timeout=20).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def check_stops_and_goes_on(alone: Path, full: Path, launch: Launcher, strategy: str, more: bool, reason: str) -> None:
    config = write_config(
        full, 5, [{"class_path": "tests.faults.test_full_disk.SmallFiles"}] if more else [], width=WIDTH
    )
    statuses = ended(launch(full, config, strategy))
    said = said_in(full)
    assert 0 not in statuses
    assert re.search(
        rf"step=3\.ckpt could not be saved \((rank \d: )?{reason}; .* MB are free there\): training stops", said
    ), said[-4000:]
    saved = full / "run/checkpoints"
    assert {"step=1.ckpt", "step=2.ckpt"} <= {path.name for path in saved.glob("*.ckpt")}
    assert not list(saved.glob(".*"))  # of a file nothing stays behind

    if not more:
        subprocess.run(["mount", "-o", "remount,size=20m", str(full / "run")], check=True, timeout=20)
    config = write_config(full, 5, width=WIDTH)
    assert set(ended(launch(full, config, strategy))) == {0}, logs(full)
    assert f"going on from {saved}/step=2.ckpt (step 2)" in said_in(full)
    config = write_config(alone, 5, width=WIDTH)
    assert set(ended(launch(alone, config, strategy))) == {0}, logs(alone)
    for rank in range(2):
        one, other = (torch.load(folder / f"state-{rank}.pt", weights_only=True) for folder in (alone, full))
        assert same(one, other)


@pytest.mark.timeout(600)
def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    for name in ("alone", "full"):
        (tmp_path / name).mkdir()
    check_stops_and_goes_on(tmp_path / "alone", tmp_path / "full", by_forks, "ddp", True, "File too large")


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=needs_fsdp2), "zero2"])
def test_a_disk_that_is_full(tmp_path: Path, disk: Path, strategy: str) -> None:
    if strategy == "zero2" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    (tmp_path / "alone").mkdir()
    reason = "RuntimeError: .*" if strategy != "ddp" else "No space left on device"  # torch passes on no more
    check_stops_and_goes_on(tmp_path / "alone", tmp_path / "full", by_lightning, strategy, False, reason)
