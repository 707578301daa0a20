"""Checkpoints as one file of whole weights and state, from every strategy to every other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import run_ranks
from tests.distributed.meshes import FSDP2
from tests.distributed.test_zero_checkpoints import SaveAfter
from tests.distributed.zero_cases import CASES
from tests.distributed.zero_runs import Case, needs_deepspeed, result, stats_of, train, users_optimizer, whole, worst

pytestmark = [needs_deepspeed, pytest.mark.timeout(600)]

AT = 5
STAGES = (1, 2, 3)
SAME_BITS = [*(f"LAMB8bit, stage {stage}" for stage in STAGES), "bfloat16, stage 2", "LAMB, offloaded, stage 3"]
ONE = replace(CASES["ramp, stage 1"], zero=None)
"""Two parameter groups, whose order is not the module's, a frozen parameter and a tied one."""
SHARDED = {
    **{f"stage {stage}": CASES[f"ramp, stage {stage}"] for stage in STAGES},
    **({"FSDP2": replace(ONE, fsdp2={})} if FSDP2 else {}),
}
SOURCES = [name for name in ("stage 2", "FSDP2") if name in SHARDED]


def to_files(case: Case) -> Case:
    one_file = {"save_distributed_checkpoint": False}
    if case.fsdp2 is not None:
        return replace(case, fsdp2={**case.fsdp2, **one_file})
    return case if case.zero is None else replace(case, zero={**case.zero, **one_file})


def save(folder: Path, case: Case, path: Path) -> dict[str, Any]:
    """A whole run that saves a file on its way."""
    run, module = train(folder, to_files(case), [SaveAfter(path, AT, 0)])
    return {"weights": whole(module), "stats": stats_of(users_optimizer(run))}


def same_bits(folder: str) -> dict[str, bool]:
    root = Path(folder)
    found = {}
    for name in SAME_BITS:
        path = root / f"{name}.ckpt"
        truth = save(root, CASES[name], path)
        again = result(root, to_files(CASES[name]), ckpt_path=path)
        same = [torch.equal(again["weights"][key], truth["weights"][key]) for key in truth["weights"]]
        found[name] = all(same) and again["stats"] == truth["stats"] and path.is_file()
    return found


def moving(folder: str) -> dict[str, Any]:
    root = Path(folder)
    for source in SOURCES:
        save(root, SHARDED[source], root / f"{source}.ckpt")
    return {
        f"{source} → {to}": result(root, case, ckpt_path=root / f"{source}.ckpt")
        for to, case in SHARDED.items()
        for source in ("one process", *SOURCES)
    }


def test_the_same_stage_on_as_many_ranks_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "same_bits", tmp_path, 2, timeout=400):
        assert all(found.values()), found


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_from_every_strategy_to_every_other(tmp_path: Path, ranks: int) -> None:
    """One process, FSDP2, ZeRO-2 → one process, FSDP2, ZeRO-1, 2 and 3, inside a ramp: the weights and statistics of the run
    in one process that was not stopped."""
    truth = save(tmp_path, ONE, tmp_path / "one process.ckpt")
    ends = run_ranks(__name__, "moving", tmp_path, ranks, timeout=400)
    ends.append({f"{s} → one process": result(tmp_path, ONE, ckpt_path=tmp_path / f"{s}.ckpt") for s in SOURCES})
    for end in ends:
        for name, found in end.items():
            weights, stats = worst(found, truth)
            assert weights < 2e-6 and stats < 1e-5, (name, weights, stats)
