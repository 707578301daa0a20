"""Checkpoints as one file of whole weights and state: between ZeRO's stages, and to and from a run in one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import run_ranks
from tests.distributed.test_zero_checkpoints import SaveAfter
from tests.distributed.zero_cases import CASES
from tests.distributed.zero_runs import Case, needs_deepspeed, result, stats_of, train, users_optimizer, whole, worst

pytestmark = [needs_deepspeed, pytest.mark.timeout(600)]

AT = 5
STAGES = (1, 2, 3)
MOVED = ("ramp",)
SAME_BITS = [*(f"LAMB8bit, stage {stage}" for stage in STAGES), "bfloat16, stage 2", "LAMB, offloaded, stage 3"]


def to_files(case: Case) -> Case:
    return replace(case, zero={**(case.zero or {}), "save_distributed_checkpoint": False})


def save(folder: Path, case: Case, path: Path) -> dict[str, Any]:
    """A whole run that saves a file on its way."""
    run, module = train(folder, to_files(case) if case.zero else case, [SaveAfter(path, AT, 0)])
    return {"weights": whole(module), "stats": stats_of(users_optimizer(run))}


def on_ranks(folder: str) -> dict[str, Any]:
    root = Path(folder)
    found: dict[str, Any] = {}
    for name in SAME_BITS:
        path = root / f"{name}.ckpt"
        truth = save(root, CASES[name], path)
        again = result(root, to_files(CASES[name]), ckpt_path=path)
        same = {key: torch.equal(again["weights"][key], truth["weights"][key]) for key in truth["weights"]}
        found[f"{name}: same bits"] = all(same.values()) and again["stats"] == truth["stats"] and path.is_file()
    for name in MOVED:
        save(root, CASES[f"{name}, stage 2"], root / f"{name}-saved.ckpt")
        for stage in STAGES:
            case = CASES[f"{name}, stage {stage}"]
            for source in ("one", "saved"):
                found[f"{name} {source} → {stage}"] = result(root, case, ckpt_path=root / f"{name}-{source}.ckpt")
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_files_go_from_run_to_run(tmp_path: Path, ranks: int) -> None:
    """In one process ⇄ ZeRO, and stage 2 → all stages: the weights and statistics of the run in one process that was not
    stopped; to the same stage on as many ranks: the same bits."""
    whole_case = {name: replace(CASES[f"{name}, stage 1"], zero=None) for name in MOVED}
    truth = {name: save(tmp_path, case, tmp_path / f"{name}-one.ckpt") for name, case in whole_case.items()}
    for found in run_ranks(__name__, "on_ranks", tmp_path, ranks, timeout=400):
        bits = {name: same for name, same in found.items() if name.endswith("same bits")}
        assert all(bits.values()), bits
        for name in found.keys() - bits.keys():
            weights, stats = worst(found[name], truth[name.split()[0]])
            assert weights < 2e-6 and stats < 1e-5, (name, weights, stats)
    for name, case in whole_case.items():
        weights, stats = worst(result(tmp_path, case, ckpt_path=tmp_path / f"{name}-saved.ckpt"), truth[name])
        assert weights < 2e-6 and stats < 1e-5, (name, weights, stats)
