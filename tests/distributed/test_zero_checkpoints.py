"""A run under ZeRO that is saved and goes on has the bits of one that was not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from tests.distributed.launch import run_ranks
from tests.distributed.zero_cases import CASES
from tests.distributed.zero_runs import Case, Language, needs_deepspeed, result, stats_of, train, users_optimizer, whole

pytestmark = [needs_deepspeed, pytest.mark.timeout(900)]

SAVED = [
    *(f"LAMB, stage {stage}" for stage in (1, 2, 3)),
    *(f"LAMB, offloaded, stage {stage}" for stage in (1, 2, 3)),
    *(f"ramp, stage {stage}" for stage in (1, 2, 3)),
    *(f"LAMB8bit, stage {stage}" for stage in (1, 2, 3)),
    *(f"bfloat16, stage {stage}" for stage in (1, 2, 3)),
    "LARS, stage 2",
    "sub-groups below a layer",
]


class SaveAfter(L.Callback):
    """Saves once, ``late`` micro-batches after a step, and keeps the weights of that time."""

    def __init__(self, path: Path, step: int, late: int) -> None:
        self.path, self.step, self.late = path, step, late
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if run.global_step >= self.step and not self.weights:
            if self.late == 0:
                run.save_checkpoint(self.path)
                self.weights = whole(module)
            self.late -= 1


def _resumed(folder: Path, name: str, late: int) -> list[bool]:
    case, path = CASES[name], folder / f"{name}-{late}.ckpt"
    save = SaveAfter(path, 5, late)
    run, module = train(folder, case, [save])
    expected, stats = whole(module), stats_of(users_optimizer(run))
    found = result(folder, case, ckpt_path=path)
    same = all(torch.equal(found["weights"][key], expected[key]) for key in expected)

    # DeepSpeed's tool does not read BF16_Optimizer's checkpoints; their weights are in the module file.
    fits = name == "bfloat16, stage 1" or _fits_a_plain_module(path, replace(case, zero=None), save.weights)
    return [same, found["stats"] == stats, len(stats) > 0, fits]


def _fits_a_plain_module(path: Path, case: Case, weights: dict[str, torch.Tensor]) -> bool:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    plain = Language(case)
    loaded = get_fp32_state_dict_from_zero_checkpoint(str(path), tag="checkpoint")
    missing, unexpected = plain.load_state_dict(loaded, strict=False)
    # It leaves frozen parameters out on stage 1.
    frozen = [key for key, p in plain.named_parameters() if not p.requires_grad]
    same = all(
        torch.equal(p.to(weights[key]), weights[key]) for key, p in plain.named_parameters() if key not in missing
    )
    return same and not unexpected and missing in ([], frozen if "stage 1" in path.name else [])


def ranks(folder: str) -> dict[str, list[bool]]:
    return {
        f"{name}, {late} late": _resumed(Path(folder), name, late)
        for name in SAVED
        for late in ((0, 1) if name.startswith("LAMB, ") else (0,))
    }


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    """Weights, and the last step's statistics; and what DeepSpeed's own tool makes of a checkpoint fits a plain module."""
    for found in run_ranks(__name__, "ranks", tmp_path, 2, timeout=600):
        assert {name: result for name, result in found.items() if not all(result)} == {}
