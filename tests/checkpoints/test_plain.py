"""Files that would run something when they are loaded."""

from __future__ import annotations

import pickle
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import ExactResume, GradientAccumulation, NonfiniteMonitor, Resume, SaveOnSignal
from lightning_scale.checkpoints import WholeFileIO
from lightning_scale.checkpoints.manifest import manifest_path, write_manifest
from lightning_scale.checkpoints.plain import load_plain
from lightning_scale.errors import UnsafeCheckpointError
from lightning_scale.optim import LAMB, LAMB8bit
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


class Own:
    """A class that no checkpoint should hold."""


class OwnToo(Own): ...


class Configured(Net):
    def __init__(self, options: Any) -> None:
        super().__init__(lambda net: torch.optim.Adam(net.parameters(), lr=0.01))
        self.save_hyperparameters({"options": options})


def configured(root: Path, options: Any, steps: int, **more: Any) -> int:
    callbacks = [ModelCheckpoint(every_n_train_steps=1), Resume("auto")]
    run = trainer(root, callbacks, max_steps=steps, max_epochs=-1, enable_checkpointing=True)
    run.fit(Configured(options), Vectors(4), **more)
    return run.global_step


PLAIN = {
    "Lightning's dict": AttributeDict(width=1, inner=AttributeDict(depth=[2])),
    "numbers of numpy": [np.float64(0.1), np.float32(2), np.int64(3), np.uint8(4), np.bool_(True), np.float16(5)],
    "an optimizer to use": {"optimizer": LAMB, "other": torch.optim.AdamW},
    "dicts and tensors": {"a": (1, "x", None), "b": torch.ones(2)},
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_hyper_parameters_go_on(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*loading it will be refused.*")
        configured(tmp_path, PLAIN[name], 2)
    assert configured(tmp_path, PLAIN[name], 4) == 4


def test_the_first_save_says_what_will_be_refused(tmp_path: Path) -> None:
    """All classes at once, and once; the refusal names them, too, and what loads them all the same."""
    options = {"a": Own(), "b": [OwnToo(), Path("x")]}
    with pytest.warns(UserWarning, match="loading it will be refused") as said:
        configured(tmp_path, options, 3)
    (words,) = [str(w.message) for w in said if "will be refused" in str(w.message)]
    named = (r"pathlib\.\w*PosixPath", r"test_plain\.Own,", r"test_plain\.OwnToo", "weights_only=False")
    assert all(re.search(name, words) for name in named)
    with pytest.raises(UnsafeCheckpointError) as refused:
        configured(tmp_path, options, 5)
    assert all(re.search(name, str(refused.value)) for name in named)
    assert configured(tmp_path, options, 5, weights_only=False) == 5
