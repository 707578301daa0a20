"""Checkpoints of FSDP2Strategy: the run goes on with the bits of the one that was not stopped; nothing it counted is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_scale.strategies import FSDP2Strategy
from tests.distributed.bert_fit import fit, write_text
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import needs_fsdp2

pytestmark = needs_fsdp2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a small text."""
    write_text(tmp_path / "text.txt")
    return tmp_path


class OneBadStep(Callback):
    """A NaN in one share of one gradient, at the second step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 1 and trainer.global_rank == 1:
            next(pl_module.parameters()).grad.to_local().view(-1)[0] = torch.nan


def _resumed(folder: str, distributed: bool) -> dict[str, Any]:
    def strategy() -> FSDP2Strategy:
        return FSDP2Strategy(save_distributed_checkpoint=distributed)

    root = Path(folder)
    saves = ModelCheckpoint(root / "saved", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    whole = fit(root, strategy(), 2, enable_checkpointing=True, extra=[saves, OneBadStep()])
    again = fit(root, strategy(), 2, ckpt_path=str(root / "saved" / "step=2.ckpt"))
    return {
        "losses": (whole.losses, again.losses),
        "ratios": (whole.ratios[-1], again.ratios[-1]),
        "skipped": (whole.skipped, again.skipped),
    }


def ranks_with_folders(folder: str) -> dict[str, Any]:
    return _resumed(folder, True)


def ranks_with_files(folder: str) -> dict[str, Any]:
    return _resumed(folder, False)


@pytest.mark.parametrize("function", ["ranks_with_folders", "ranks_with_files"])
def test_resumes_with_the_same_bits(function: str, folder: Path) -> None:
    for found in run_ranks(__name__, function, folder, timeout=240):
        whole, again = found["losses"]
        assert len(whole) == 24 and again == whole[8:]
        assert found["ratios"][0] == found["ratios"][1]
        assert found["skipped"] == (1, 1)


def ranks_ddp(folder: str) -> dict[str, Any]:
    record = fit(Path(folder), "ddp", 2)
    return {"losses": record.losses, "ratios": record.ratios}


def ranks_fsdp2(folder: str) -> dict[str, Any]:
    record = fit(Path(folder), FSDP2Strategy(), 2)
    return {"losses": record.losses, "ratios": record.ratios}


def test_the_run_of_ddp(folder: Path) -> None:
    """Losses and trust ratios of every layer, over two stages."""
    ddp, fsdp2 = (run_ranks(__name__, f"ranks_{kind}", folder, timeout=240) for kind in ("ddp", "fsdp2"))
    for theirs, ours in zip(ddp, fsdp2, strict=True):
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        for a, b in zip(ours["ratios"], theirs["ratios"], strict=True):
            assert a == pytest.approx(b, rel=1e-5)
