"""All ranks load what rank 0 has found, whatever their own file system shows them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import Resume
from lightning_scale.callbacks import resume as module_of_resume
from lightning_scale.checkpoints import Choice
from lightning_scale.errors import ConfigurationError
from tests.distributed.launch import run_ranks
from tests.distributed.ranks import ddp_options
from tests.toys import Tally, indices, trainer


def first_step(folder: str, steps: int, resume: str = "auto") -> int:
    """At which step this rank begins."""
    module = Tally(20)
    save = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, filename="{step}")
    run = trainer(Path(folder), [Resume(resume), save], max_steps=steps, enable_checkpointing=True, **ddp_options())
    run.fit(module, indices(20, 1))
    return run.global_step - len(module.gradients)


def ranks(folder: str) -> dict[str, Any]:
    found = {"fresh": first_step(folder, 4)}
    if os.environ["RANK"] == "1":
        module_of_resume.newest_whole = lambda folders: Choice()  # a directory listing from before the last save
    found["again"] = first_step(folder, 6)
    try:
        first_step(folder, 6, str(Path(folder) / "none.ckpt"))
    except ConfigurationError as error:
        found["said"] = str(error)
    return found


@pytest.mark.timeout(120)
def test_rank_0_decides(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks", tmp_path):
        assert (found["fresh"], found["again"]) == (0, 4)
        assert "there is no checkpoint" in found["said"]
