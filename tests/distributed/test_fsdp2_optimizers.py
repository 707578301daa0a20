"""Layer-wise optimizers on FSDP2's shards take the step of the unsharded parameters."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launch import run_ranks
from tests.distributed.meshes import all_reduces, mesh_of, needs_fsdp2, relative, relative_stats, whole
from tests.distributed.sharded import MAKERS, backward, groups, network

pytestmark = needs_fsdp2

STEPS = 10


def _shard(model: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.layers, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _compare(name: str, mesh: Any, steps: int = STEPS) -> dict[str, float]:
    """The largest relative differences from the unsharded run: of weights, of state, and of `layer_stats()`."""
    plain, sharded = network(), _shard(network(), mesh)
    theirs, ours = MAKERS[name](groups(plain)), MAKERS[name](groups(sharded))
    worst = {"weights": 0.0, "state": 0.0, "stats": 0.0}
    for step in range(steps):
        for model, optimizer in ((plain, theirs), (sharded, ours)):
            optimizer.zero_grad()
            backward(model, step)
            optimizer.step()
        worst["stats"] = max(worst["stats"], relative_stats(ours, theirs))
    for p, q in zip(sharded.parameters(), plain.parameters(), strict=True):
        worst["weights"] = max(worst["weights"], relative(whole(p.detach()), q.detach()))
        for key, value in theirs.state[q].items():
            if value.dim():
                assert type(ours.state[p][key]).__name__ == "DTensor"
                worst["state"] = max(worst["state"], relative(whole(ours.state[p][key]), value))
    return worst


def ranks(folder: str) -> dict[str, dict[str, float]]:
    torch.distributed.init_process_group("gloo")
    mesh = mesh_of(torch.distributed.get_world_size())
    return {name: _compare(name, mesh) for name in MAKERS}


def ranks_of_two_meshes(folder: str) -> dict[str, dict[str, float]]:
    """HSDP: two replicas of two shards; the norms are summed over the shards of one replica alone."""
    torch.distributed.init_process_group("gloo")
    mesh = mesh_of(2, 2)
    return {name: _compare(name, mesh, steps=4) for name in ("LAMB", "LARS")}


def check(results: list[dict[str, dict[str, float]]]) -> None:
    for found in results:
        for name, worst in found.items():
            assert worst["weights"] <= 2e-6, (name, worst)
            assert worst["stats"] <= 1e-5, (name, worst)
            assert worst["state"] <= 2e-5, (name, worst)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_uneven_and_empty_shards(world: int, tmp_path: Path) -> None:
    check(run_ranks(__name__, "ranks", tmp_path, world))


@pytest.mark.slow
def test_replicas_of_shards(tmp_path: Path) -> None:
    check(run_ranks(__name__, "ranks_of_two_meshes", tmp_path, 4))


def ranks_counting(folder: str) -> dict[str, int]:
    torch.distributed.init_process_group("gloo")
    model = _shard(network(), mesh_of(torch.distributed.get_world_size()))
    counts = {}
    for name in ("LAMB", "LAMB-plain", "LARS"):
        optimizer = MAKERS[name](groups(model))
        optimizer.zero_grad()
        backward(model, 0)
        counts[name] = all_reduces(optimizer.step)
    return counts


def test_collectives_of_a_step(tmp_path: Path) -> None:
    """One for the norms of all layers of all groups, and one for the look at the gradients where there is one."""
    for counts in run_ranks(__name__, "ranks_counting", tmp_path):
        assert counts == {"LAMB": 2, "LAMB-plain": 1, "LARS": 2}


def ranks_with_nan(folder: str) -> list[Any]:
    torch.distributed.init_process_group("gloo")
    model = _shard(network(), mesh_of(2))
    optimizer = MAKERS["LAMB"](groups(model))
    for step in range(2):
        optimizer.zero_grad()
        backward(model, step)
        if step == 1:
            before = [whole(p.detach()).clone() for p in model.parameters()]
            if torch.distributed.get_rank() == 1:  # on one rank alone, in its share of one layer
                model.embedding.weight.grad.to_local()[0, 0] = torch.nan
        optimizer.step()
    same = all(torch.equal(whole(p.detach()), q) for p, q in zip(model.parameters(), before, strict=True))
    return [same, int(optimizer.skipped_steps)]


def test_a_nan_in_one_share_skips_the_step_everywhere(tmp_path: Path) -> None:
    assert run_ranks(__name__, "ranks_with_nan", tmp_path) == [[True, 1], [True, 1]]


def ranks_naive(folder: str) -> float:
    """What happens where each rank takes the norm of its share for the layer's."""
    from dataclasses import replace

    from lightning_scale.optim import step_plan

    torch.distributed.init_process_group("gloo")
    real = step_plan.sharded_layout
    step_plan.sharded_layout = lambda *a: replace(real(*a), all_reduce=None)
    return min(_compare(name, mesh_of(2), steps=5)["weights"] for name in ("LAMB", "LARS"))


def test_norms_of_shares_alone_are_noticed(tmp_path: Path) -> None:
    for worst in run_ranks(__name__, "ranks_naive", tmp_path):
        assert worst > 1e-3


def ranks_that_begin_with_zeros(folder: str) -> dict[str, list[str]]:
    """The warnings of a rank's first two steps: of a layer of zeros, and of one that is zero in the last rank's rows alone."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    found = {}
    for name in ("LAMB", "LARS"):
        layers = {key: torch.nn.Linear(6, 8, bias=False) for key in ("zero", "part")}
        with torch.no_grad():
            layers["zero"].weight.zero_()
            layers["part"].weight[4:] = 0
        model = torch.nn.Sequential(OrderedDict(layers))
        fully_shard(model, mesh=mesh_of(torch.distributed.get_world_size()))
        optimizer = MAKERS[name](model.named_parameters())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                for p in model.parameters():
                    p.grad = torch.ones_like(p)
                optimizer.step()
        found[name] = [str(w.message) for w in caught if "began as zeros" in str(w.message)]
    return found


def test_all_ranks_warn_of_whole_layers_of_zeros(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_that_begin_with_zeros", tmp_path):
        for said in found.values():
            assert len(said) == 1 and said[0].startswith("'zero.weight' began")
