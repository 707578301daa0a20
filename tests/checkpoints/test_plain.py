"""Files that would run something when they are loaded."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import ExactResume, GradientAccumulation, NonfiniteMonitor, Resume, SaveOnSignal
from lightning_scale.checkpoints import WholeFileIO
from lightning_scale.checkpoints.manifest import manifest_path, write_manifest
from lightning_scale.checkpoints.plain import load_plain
from lightning_scale.errors import UnsafeCheckpointError
from lightning_scale.optim import LAMB8bit
from tests.checkpoints.traps import Trap
from tests.toys import Net, Vectors, trainer


def fit(root: Path, resume: str = "auto", steps: int = 4, **options: Any) -> Net:
    save = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, filename="{step}")
    ours = [GradientAccumulation(8), ExactResume(), SaveOnSignal(), NonfiniteMonitor(), Resume(resume)]
    module = Net(lambda net: LAMB8bit(net.named_parameters(), lr=0.01))
    run = trainer(root, [*ours, save], max_steps=steps, enable_checkpointing=True)
    run.fit(module, Vectors(4), **options)
    return module


def test_a_malicious_file_is_refused(tmp_path: Path) -> None:
    """Also one whose manifest agrees with it."""
    fit(tmp_path)
    file, trap = tmp_path / "checkpoints" / "step=4.ckpt", tmp_path / "sprung"
    content = torch.load(file, weights_only=True)  # what this package stores is plain
    torch.save({**content, "more": Trap(trap)}, file)
    manifest_path(file).unlink()
    write_manifest(file, 4, True)
    for resume in ("auto", str(file)):
        with pytest.raises(
            UnsafeCheckpointError, match=r"step=4\.ckpt was not loaded, .* it asks for posix\.system"
        ) as e:
            fit(tmp_path, resume, steps=6)
        assert "add_safe_globals" in str(e.value) and "\n" not in str(e.value)
    assert not trap.exists()
    fit(tmp_path, steps=6, weights_only=False)  # somebody who trusts it
    assert trap.exists()


def test_other_pickles(tmp_path: Path) -> None:
    trap, file = tmp_path / "sprung", tmp_path / "x.ckpt"
    for content in (pickle.dumps(Trap(trap)), b"cposix\nsystem\n(S'touch %s'\ntR." % str(trap).encode()):
        file.write_bytes(content)
        with pytest.raises(UnsafeCheckpointError, match=r"x\.ckpt was not loaded"):
            WholeFileIO().load_checkpoint(file)
    torch.save({"a": Trap(trap)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        load_plain(file)
    assert not trap.exists()


def test_the_environment_does_not_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch loads everything where a variable says so and nobody else does."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap, file = tmp_path / "sprung", tmp_path / "x.ckpt"
    torch.save({"a": Trap(trap)}, file)
    torch.load(file)
    assert trap.exists()
    trap.unlink()
    with pytest.raises(UnsafeCheckpointError):
        WholeFileIO().load_checkpoint(file)
    assert not trap.exists()


def test_random_states_are_plain(tmp_path: Path) -> None:
    """NumPy's generator among them."""
    random.seed(1)
    np.random.seed(1)
    fit(tmp_path)
    content = load_plain(tmp_path / "checkpoints" / "step=4.ckpt")
    assert content["callbacks"]["ExactResume"]["random_states"]
