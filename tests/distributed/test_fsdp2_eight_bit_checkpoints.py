"""8-bit state of shards through torch.distributed.checkpoint: the same bits on as many ranks, the same numbers on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale.optim import LAMB, LAMB8bit
from lightning_scale.optim.quantization import dequantize, quantize
from lightning_scale.optim.state.moments import CODES
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import mesh_of, needs_fsdp2
from tests.distributed.quantized import MAKERS, SHAPES, Layers, in_cut_blocks, named, numbers, own_bits, shard, train

pytestmark = needs_fsdp2

STEPS = 4
KINDS = ("AdamW8bit", "LAMB8bit", "LAMB8bit-named")
MESHES = {1: (1,), 2: (2,), 3: (3,), 4: (2, 2)}


def _sharded(name: str) -> tuple[Any, Any]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    model = shard(Layers(), mesh_of(*MESHES[torch.distributed.get_world_size()]))
    return model, MAKERS[name](named(model))


def _whole_options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def _save(folder: Path, name: str, model: Any, optimizer: Any) -> None:
    """As a folder, as one file, and the numbers that the codes stand for."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=folder / name)
    state = {
        "model": get_model_state_dict(model, options=_whole_options()),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_whole_options()),
    }
    read = {n: dict(numbers(p, optimizer.state[p])) for n, p in model.named_parameters() if p.requires_grad}
    if torch.distributed.get_rank() == 0:
        torch.save(state, folder / f"{name}.pt")
        torch.save(read, folder / f"{name}.read.pt")


def _load(folder: Path, name: str, form: str, kind: str | None = None) -> tuple[Any, Any]:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    model, optimizer = _sharded(name)
    if kind is not None:
        optimizer = (LAMB if kind == "LAMB" else LAMB8bit)(named(model), lr=0.02)
    if form == "folder":
        state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        dcp.load(state, checkpoint_id=folder / name)
        options = StateDictOptions(cpu_offload=True)
    else:
        state = torch.load(folder / f"{name}.pt", weights_only=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"], options=options)
    return model, optimizer


def ranks_resuming(folder: str) -> dict[str, bool]:
    """Saved after some steps, loaded into fresh ones, both trained on."""
    found = {}
    for name in KINDS:
        model, optimizer = _sharded(name)
        train(model, optimizer, range(STEPS))
        _save(Path(folder), name, model, optimizer)
        torch.distributed.barrier()
        kept = [t.clone() for t in own_bits(model, optimizer)]
        train(model, optimizer, range(STEPS, 2 * STEPS))
        for form in ("folder", "file"):
            again, other = _load(Path(folder), name, form)
            loaded = [
                torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(own_bits(again, other), kept, strict=True)
            ]
            train(again, other, range(STEPS, 2 * STEPS))
            after = [
                torch.equal(*pair) for pair in zip(own_bits(again, other), own_bits(model, optimizer), strict=True)
            ]
            found[f"{name} {form}"] = all(loaded) and all(after)
    return found


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_resumes_with_the_same_bits(world: int, tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_resuming", tmp_path, world):
        assert len(found) == 2 * len(KINDS) and all(found.values()), found


def ranks_saving(folder: str) -> None:
    model, optimizer = _sharded("AdamW8bit")
    train(model, optimizer, range(STEPS))
    _save(Path(folder), "AdamW8bit", model, optimizer)


def ranks_loading(folder: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for form in ("folder", "file"):
        model, optimizer = _load(Path(folder), "AdamW8bit", form)
        found[form] = {n: dict(numbers(p, optimizer.state[p])) for n, p in model.named_parameters() if p.requires_grad}
        train(model, optimizer, range(STEPS, STEPS + 1))
    return found


def _on_other_ranks(before: int, after: int, folder: Path) -> None:
    run_ranks(__name__, "ranks_saving", folder, before)
    saved = torch.load(folder / "AdamW8bit.read.pt", weights_only=True)
    for found in run_ranks(__name__, "ranks_loading", folder, after):
        for moments in found.values():
            for layer, shape in SHAPES.items():
                joined = in_cut_blocks(shape, before) & ~in_cut_blocks(shape, after)
                for key, value in saved[layer].items():
                    here = moments[layer][key]
                    assert torch.equal(here[~joined], value[~joined]), (layer, key)
                    if joined.any():  # read, and rounded with one scale
                        rounded = dequantize(*quantize(value.reshape(-1), CODES[key]), CODES[key]).view(shape)
                        assert torch.equal(here[joined], rounded[joined]), (layer, key)


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_other_ranks_round_anew_only_blocks_that_were_cut(before: int, after: int, tmp_path: Path) -> None:
    _on_other_ranks(before, after, tmp_path)


def ranks_from_plain(folder: str) -> bool:
    """A plain optimizer's state, which a consolidated file of it holds."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    model, optimizer = _sharded("AdamW8bit")
    state = torch.load(Path(folder) / "plain.pt", weights_only=True)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state["optimizer"], options=options)
    read = torch.load(Path(folder) / "plain.read.pt", weights_only=True)
    return all(
        torch.equal(value, read[n][key])
        for n, p in model.named_parameters()
        if p.requires_grad
        for key, value in numbers(p, optimizer.state[p])
    )


def test_whole_parameters_and_shards_load_each_others_state(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    plain = Layers()
    optimizer = MAKERS["AdamW8bit"](named(plain))
    train(plain, optimizer, range(STEPS))
    torch.save({"optimizer": get_optimizer_state_dict(plain, optimizer)}, tmp_path / "plain.pt")
    read = {n: dict(numbers(p, optimizer.state[p])) for n, p in plain.named_parameters() if p.requires_grad}
    torch.save(read, tmp_path / "plain.read.pt")
    assert run_ranks(__name__, "ranks_from_plain", tmp_path) == [True, True]

    run_ranks(__name__, "ranks_saving", tmp_path, 2)
    state = torch.load(tmp_path / "AdamW8bit.pt", weights_only=True)
    read = torch.load(tmp_path / "AdamW8bit.read.pt", weights_only=True)
    fresh = Layers()
    other = MAKERS["AdamW8bit"](named(fresh))
    set_optimizer_state_dict(fresh, other, optim_state_dict=state["optimizer"])
    for n, p in fresh.named_parameters():
        for key, value in numbers(p, other.state[p]) if p.requires_grad else ():
            uncut = ~in_cut_blocks(SHAPES[n], 2)
            assert torch.equal(value[uncut], read[n][key][uncut]), (n, key)
            assert other.state[p][key].is_contiguous() and "exp_avg_codes" not in other.state[p]
    train(fresh, other, range(1))


def ranks_mistaken(folder: str) -> dict[str, str]:
    """LAMB's state for LAMB8bit, and the other way round."""
    from torch.distributed.checkpoint.api import CheckpointException

    model, optimizer = _sharded("LAMB8bit")
    train(model, optimizer, range(1))
    _save(Path(folder), "LAMB8bit", model, optimizer)
    full = LAMB(named(model), lr=0.02)
    train(model, full, range(1))
    _save(Path(folder), "LAMB", model, full)
    torch.distributed.barrier()
    found = {}
    for name, kind in (("LAMB8bit", "LAMB"), ("LAMB", "LAMB8bit")):
        for form in ("folder", "file"):
            MAKERS.setdefault(name, lambda p: LAMB(p, lr=0.02))
            try:
                _load(Path(folder), name, form, kind)
                found[f"{kind} {form}"] = ""
            except (ValueError, CheckpointException) as error:
                found[f"{kind} {form}"] = str(error)
    return found


def test_another_optimizers_state_is_refused(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_mistaken", tmp_path):
        assert "is in 8 bits, and LAMB keeps it in full precision" in found["LAMB file"]
        assert "exp_avg of a parameter of shape (18, 256) is float32 of shape (18, 256)" in found["LAMB8bit file"]
        assert "Missing key in checkpoint state_dict: optimizer.state.layers_whole.exp_avg." in found["LAMB folder"]
        assert "Missing key" in found["LAMB8bit folder"] and "exp_avg_codes" in found["LAMB8bit folder"]
