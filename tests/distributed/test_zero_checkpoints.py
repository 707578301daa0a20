"""A run under ZeRO that is saved and goes on has the bits of one that was not stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from lightning_scale.errors import ConfigurationError
from tests.distributed.launch import run_ranks
from tests.distributed.zero_cases import CASES, truth
from tests.distributed.zero_runs import (
    Case,
    Language,
    data,
    needs_deepspeed,
    options,
    result,
    result_of,
    stats_of,
    train,
    users_optimizer,
    whole,
    worst,
)
from tests.toys import trainer

pytestmark = [needs_deepspeed, pytest.mark.timeout(900)]

FEW = [f"LAMB{offloaded}, stage {stage}" for offloaded in ("", ", offloaded") for stage in (1, 2, 3)]
LEFT_OUT = [
    f"{name}, gradients left out, stage {stage}"
    for name, stage in (("LAMB", 1), ("LAMB8bit", 2), ("LARS", 3), ("AdamW", 1), ("AdamW", 3), ("SGD", 2))
]
SAVED = [
    *FEW,
    *(f"ramp, stage {stage}" for stage in (1, 2, 3)),
    *(f"LAMB8bit, stage {stage}" for stage in (1, 2, 3)),
    *(f"bfloat16, stage {stage}" for stage in (1, 2, 3)),
    "LARS, stage 2",
    "LARS-decayed, stage 3",
    "LAMB8bit-named, stage 2",
    "sub-groups below a layer",
    *LEFT_OUT,
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
    return [same, found["stats"] == stats, len(stats) > 0 or not case.optimizer.startswith(("LAMB", "LARS")), fits]


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


def few_ranks(folder: str) -> dict[str, list[bool]]:
    return {
        **{name: _resumed(Path(folder), name, 1) for name in FEW},
        **{name: _resumed(Path(folder), name, 0) for name in LEFT_OUT},
    }


def ranks(folder: str) -> dict[str, list[bool]]:
    return {
        f"{name}, {late} late": _resumed(Path(folder), name, late)
        for name in SAVED
        for late in ((0, 1) if name.startswith("LAMB, ") else (0,))
    }


@pytest.mark.parametrize("function", ["few_ranks", pytest.param("ranks", marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_same_bits(function: str, tmp_path: Path) -> None:
    """Weights, and the last step's statistics; and what DeepSpeed's own tool makes of a checkpoint fits a plain module."""
    for found in run_ranks(__name__, function, tmp_path, 2, timeout=600):
        assert {name: result for name, result in found.items() if not all(result)} == {}


class Validated(Language):
    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        step = self.training_step(batch, batch_idx)
        self.log("val_loss", step["loss"], batch_size=int(step["num_items"]), sync_dist=True)


def _validated(folder: Path, case: Case, weights: dict[str, torch.Tensor] | None = None, **ckpt_path: Any) -> float:
    module = Validated(case)
    if weights is not None:
        module.load_state_dict(weights, strict=False)
    run = trainer(folder, [], **options(case))
    (metrics,) = run.validate(module, data(replace(case, batch=None, zero=None)), verbose=False, **ckpt_path)
    return float(metrics["val_loss"])


def saving_folders(folder: str) -> None:
    for stage in (1, 2, 3):
        train(
            Path(folder),
            replace(CASES[f"LAMB, stage {stage}"], steps=2),
            [SaveAfter(Path(folder) / f"{stage}.ckpt", 1, 0)],
        )


def loading_folders(folder: str) -> list[str]:
    said = []
    for stage in (1, 2, 3):
        with pytest.raises(ConfigurationError) as refused:
            train(Path(folder), CASES[f"LAMB, stage {stage}"], ckpt_path=Path(folder) / f"{stage}.ckpt")
        said.append(str(refused.value))
    return said


def test_folders_of_another_number_of_ranks_are_refused(tmp_path: Path) -> None:
    run_ranks(__name__, "saving_folders", tmp_path, 2)
    for said in run_ranks(__name__, "loading_folders", tmp_path, 1):
        assert all("has the shares of 2 ranks, and this run has 1" in sentence for sentence in said)


def ranks_validating(folder: str) -> list[Any]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found: list[Any] = []
    for stage in (2, 3):
        case, path = CASES[f"LAMB, stage {stage}"], Path(folder) / f"{stage}.ckpt"
        run, module = train(Path(folder), case)
        run.save_checkpoint(path)
        weights = whole(module)
        loaded = get_fp32_state_dict_from_zero_checkpoint(str(path), tag="checkpoint")
        alone = _validated(Path(folder), replace(case, zero=None), weights)
        try:
            taken = _validated(Path(folder), case, ckpt_path=path)
        except ConfigurationError as error:
            found.append(str(error))
            taken = _validated(Path(folder), case, loaded)
        found.append(abs(taken - alone) < 1e-6 < alone)
    return found


def test_a_stage_3_checkpoint_is_for_training(tmp_path: Path) -> None:
    """Validation of one is refused, and what the sentence says to do instead gives the loss of the whole weights."""
    for of_stage_2, sentence, of_stage_3 in run_ranks(__name__, "ranks_validating", tmp_path):
        assert of_stage_2 and of_stage_3
        assert "loads a stage 3 checkpoint for training only: make whole weights of it" in sentence


FROM_FILES = [
    f"{name}, gradients left out, stage {stage}" for stage, name in enumerate(("LAMB", "LARS", "LAMB8bit"), 1)
]


def to_files(name: str) -> Case:
    return replace(CASES[name], zero={**(CASES[name].zero or {}), "save_distributed_checkpoint": False})


def ranks_from_files(folder: str) -> dict[str, Any]:
    """Go on from one process's file, and save another; and what is said of two that hold something else."""
    found: dict[str, Any] = {}
    for name in FROM_FILES:
        case, path = to_files(name), Path(folder) / f"{name}.ckpt"
        save = SaveAfter(Path(folder) / f"{name}, again.ckpt", 2, 0)
        run, module = train(Path(folder), case, [save], ckpt_path=path)
        found[name] = result_of(run, module)
    for damage in ("another kind", "one layer"):
        with pytest.raises(ConfigurationError) as refused:
            train(Path(folder), to_files(FROM_FILES[0]), ckpt_path=Path(folder) / f"{damage}.ckpt")
        found[damage] = str(refused.value)
    return found


def test_layers_without_state_in_files(tmp_path: Path) -> None:
    """One process saves no state of layers without a gradient so far: ZeRO goes on from that, and one process from ZeRO's."""
    for name in [*FROM_FILES, "SGD8bit, gradients left out, stage 1"]:
        train(tmp_path, replace(CASES[name], zero=None), [SaveAfter(tmp_path / f"{name}.ckpt", 1, 0)])
    (tmp_path / "SGD8bit, gradients left out, stage 1.ckpt").rename(tmp_path / "another kind.ckpt")
    damaged = torch.load(tmp_path / f"{FROM_FILES[0]}.ckpt", weights_only=True)
    del max(damaged["optimizer_states"][0]["state"].items())[1]["exp_avg"]  # of a layer on one rank
    torch.save(damaged, tmp_path / "one layer.ckpt")
    found = run_ranks(__name__, "ranks_from_files", tmp_path, 2, timeout=600)
    for name in FROM_FILES:
        expected = truth(name, tmp_path)
        for rank in found:
            weights, stats = worst(rank[name], expected)
            assert weights <= 2e-6 and stats <= 1e-5, (name, weights, stats)
        again = result(tmp_path, replace(CASES[name], zero=None), ckpt_path=tmp_path / f"{name}, again.ckpt")
        assert worst(again, expected)[0] <= 2e-6
    for damage in ("another kind", "one layer"):
        said = {rank[damage] for rank in found}
        assert len(said) == 1 and "exp_avg" in said.pop()
