"""Stochastic rounding on two ranks: the bits of one process, whose gradients are the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale.optim import LAMB, LARS, AdamW8bit, SGD8bit
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import mesh_of, needs_fsdp2, whole
from tests.distributed.quantized import Layers, named, shard, train
from tests.distributed.zero_cases import OPTIMIZERS
from tests.distributed.zero_runs import Case, Directions, Sometimes, needs_deepspeed, result
from tests.distributed.zero_runs import train as train_case

STOCHASTIC: dict[str, Any] = {"weight_rounding": "stochastic", "weight_rounding_seed": 5}
# Codes of blocks that a shard's edge cuts are rounded apart: moments stay in float32 where there are any.
MAKERS: dict[str, Callable[[Any], Any]] = {
    "LAMB": lambda p: LAMB(p, lr=1e-3, weight_decay=0.1, max_grad_norm=20.0, **STOCHASTIC),
    "LARS": lambda p: LARS(p, lr=0.1, **STOCHASTIC),
    "LARS-memoryless": lambda p: LARS(p, lr=0.1, momentum=0.0, **STOCHASTIC),
    "AdamW8bit": lambda p: AdamW8bit(p, lr=1e-3, eight_bit_except=["*"], **STOCHASTIC),
    "SGD8bit": lambda p: SGD8bit(p, lr=1e-3, momentum=0.0, **STOCHASTIC),
}
REFERENCE = "SGD8bit by the reference"
MAKERS[REFERENCE] = lambda p: SGD8bit(p, lr=1e-3, momentum=0.0, fused=False, **STOCHASTIC)


class Model(Layers):
    """In bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.coupling = 0.0  # gradients are products of short numbers, exact in bfloat16
        self.bfloat16()


def _compare(make: Callable[[Any], Any], mesh: Any) -> list[str]:
    """The layers whose bits differ after three steps, and after three more of a run that was saved and loaded."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    plain, sharded = Model(), shard(Model(), mesh)
    theirs, ours = make(named(plain)), make(named(sharded))
    found: list[str] = []

    def look(when: str) -> None:
        for (name, q), p in zip(plain.named_parameters(), sharded.parameters(), strict=True):
            if not whole(p.detach()).equal(q.detach()):
                found.append(f"{name} {when}")

    train(plain, theirs, range(3))
    train(sharded, ours, range(3))
    look("at first")
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    resumed = make(named(sharded))
    resumed.weight_rounding_seed = 0
    resumed.load_state_dict(torch.load(file, weights_only=False))
    train(plain, theirs, range(3, 5))
    train(sharded, resumed, range(3, 5))
    look("after a resume")
    kept = get_optimizer_state_dict(sharded, resumed)  # what torch.distributed.checkpoint writes
    again = make(named(sharded))
    again.weight_rounding_seed = 0
    set_optimizer_state_dict(sharded, again, kept)
    train(plain, theirs, range(5, 7))
    train(sharded, again, range(5, 7))
    look("after a second resume")
    if plain.layers_whole.equal(Model().layers_whole):
        found.append("nothing has moved")
    return found


def ranks_fsdp2(folder: str) -> dict[str, list[str]]:
    torch.distributed.init_process_group("gloo")
    return {name: _compare(make, mesh_of(2)) for name, make in MAKERS.items()}


@needs_fsdp2
def test_shards_have_the_bits_of_one_process(tmp_path: Path) -> None:
    for rank in run_ranks(__name__, "ranks_fsdp2", tmp_path):
        assert rank == {name: [] for name in MAKERS}


# DeepSpeed keeps weights in bfloat16 only where it is told to, and without offload asks for the states to be in it, too.
_LOW = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}


def zero_case(name: str, low: bool = True, stage: int = 2, files: bool = False) -> Case:
    OPTIMIZERS[f"rounded {name}"] = MAKERS[name]
    fit = {"precision": "bf16-true"}
    config = {"bf16": _LOW, "data_types": {"grad_accum_dtype": "bf16"}} if low else None
    zero = {"stage": stage, "config": config, "save_distributed_checkpoint": not files}
    return Case(f"rounded {name}", zero, None, fit, fit, make_network=Directions, steps=4)


def ranks_zero(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("SGD8bit", "AdamW8bit", "LARS-memoryless"):
        found[name] = result(Path(folder), zero_case(name))["weights"]
    for stage in (1, 3):
        found[f"stage {stage}"] = result(Path(folder), zero_case("AdamW8bit", stage=stage))["weights"]
    for name in LEFT_OUT:
        case = replace(zero_case(name), make_network=Sometimes)
        found[f"{name}, gradients left out"] = result(Path(folder), case)["weights"]
    for files in (False, True):
        case, path = zero_case("AdamW8bit", files=files), Path(folder, f"saved {files}.ckpt")
        first, _ = train_case(Path(folder), replace(case, steps=2))
        first.save_checkpoint(path)
        found[f"resumed from a {'file' if files else 'folder'}"] = result(Path(folder), case, ckpt_path=path)["weights"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result(Path(folder), zero_case("SGD8bit", False))
    found["warned"] = [str(w.message) for w in seen if "weight_rounding" in str(w.message)]
    return found


LEFT_OUT = ("SGD8bit", "LARS-memoryless")
"""Steps in which layers have no gradient, in pieces of flat tensors; of optimizers whose steps otherwise need no count."""


def differ(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    return [layer for layer in expected if not found[layer].equal(expected[layer])]


@needs_deepspeed
@pytest.mark.timeout(300)
def test_flat_tensors_have_the_bits_of_one_process(tmp_path: Path) -> None:
    for number, rank in enumerate(run_ranks(__name__, "ranks_zero", tmp_path, timeout=200)):
        for name in ("SGD8bit", "AdamW8bit", "LARS-memoryless"):
            expected = result(tmp_path, replace(zero_case(name), zero=None))["weights"]
            assert differ(rank[name], expected) == [], name
            if name in LEFT_OUT:
                case = replace(zero_case(name), zero=None, make_network=Sometimes)
                assert differ(rank[f"{name}, gradients left out"], result(tmp_path, case)["weights"]) == [], name
            if name == "AdamW8bit":
                assert differ(rank["stage 1"], expected) == differ(rank["stage 3"], expected) == []
                for source in ("folder", "file"):
                    assert differ(rank[f"resumed from a {source}"], expected) == []
                OPTIMIZERS["rounded by another seed"] = lambda p: AdamW8bit(
                    p, eight_bit_except=["*"], weight_rounding="stochastic"
                )
                case = replace(
                    zero_case(name), zero=None, optimizer="rounded by another seed"
                )  # the file's seed and rate have the say
                resumed = result(tmp_path, case, ckpt_path=tmp_path / "saved True.ckpt")["weights"]
                assert differ(resumed, expected) == []
        assert len(rank["warned"]) == (number == 0)
