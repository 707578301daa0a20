"""8-bit optimizers on FSDP2's shards: the unsharded run's codes, but for blocks that a shard's edge cuts.

Those have a scale for each part, so they are rounded otherwise. A rounding moves a number by half of a code's width, 0.7 % of
its block's largest at most; two roundings differ by a width, and with decay 0.9 ten of them add up to 6.5 widths, 9 %, where
all fall to one side. `STATE` is half of that, `WEIGHTS` what such a difference of momentum does to weights at these rates.

A layer's norm can differ by `STATE` times the share of its elements that lie in cut blocks (here one block of 18 at least,
0.26 %) if all differences point along the update; they do not, so `STATS` is less than half of that.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_scale.optim import LAMB
from tests.distributed.launch import run_ranks
from tests.distributed.meshes import all_reduces, mesh_of, needs_fsdp2, own, relative, relative_stats, whole
from tests.distributed.quantized import (
    MAKERS,
    SHAPES,
    WHOLE_BLOCKS,
    Layers,
    in_cut_blocks,
    named,
    numbers,
    own_bits,
    shard,
    train,
)

pytestmark = needs_fsdp2

STEPS = 10
STATE = 0.046
STATS = 1e-3
WEIGHTS = {"AdamW8bit": 5e-3, "LAMB8bit": 5e-3, "LAMB8bit-clip": 5e-3, "LARS8bit-momentum": 5e-3}
ELEMENTWISE = ("AdamW8bit", "SGD8bit")
SEEN = dict[str, Any]


def _compare(name: str, mesh: Any, steps: int = STEPS) -> SEEN:
    """The largest relative differences, and which parameters' weights and moments had the same bits in the end:
    outside cut blocks; and in the first step.
    """
    shards = mesh.size(mesh.ndim - 1)
    plain, sharded = Layers(), shard(Layers(), mesh)
    if shards == 3:  # the mean of three equal numbers has their bits only where they are short
        plain.coupling = sharded.coupling = 0.0
    theirs, ours = MAKERS[name](named(plain)), MAKERS[name](named(sharded))
    found: SEEN = {"weights": 0.0, "state": 0.0, "stats": 0.0, "same": set(SHAPES), "same at first": set(SHAPES)}
    for step in range(steps):
        train(plain, theirs, range(step, step + 1))
        train(sharded, ours, range(step, step + 1))
        if step not in (0, steps - 1):
            continue
        for (layer, q), p in zip(plain.named_parameters(), sharded.parameters(), strict=True):
            if not q.requires_grad:
                continue
            pairs = [(whole(p.detach()), q.detach())]
            pairs += [
                (a, b) for (_, a), (_, b) in zip(numbers(p, ours.state[p]), numbers(q, theirs.state[q]), strict=True)
            ]
            found["weights"] = max(found["weights"], relative(*pairs[0]))
            found["state"] = max([found["state"], *(relative(*pair) for pair in pairs[1:])])
            uncut = ~in_cut_blocks(SHAPES[layer], shards)
            if not all(torch.equal(a[uncut], b[uncut]) for a, b in pairs):
                found["same"].discard(layer)
                if step == 0:
                    found["same at first"].discard(layer)
        if hasattr(ours, "layer_stats"):
            found["stats"] = max(found["stats"], relative_stats(ours, theirs))
    found["same"], found["same at first"] = sorted(found["same"]), sorted(found["same at first"])
    return found


def ranks(folder: str) -> dict[str, SEEN]:
    torch.distributed.init_process_group("gloo")
    mesh = mesh_of(torch.distributed.get_world_size())
    return {name: _compare(name, mesh) for name in MAKERS}


def ranks_of_two_meshes(folder: str) -> dict[str, SEEN]:
    """HSDP: two replicas of two shards."""
    torch.distributed.init_process_group("gloo")
    return {name: _compare(name, mesh_of(2, 2), steps=6) for name in MAKERS}


def check(results: list[dict[str, SEEN]]) -> None:
    for found in results:
        for name, seen in found.items():
            print(name, seen)
            assert seen["weights"] <= WEIGHTS.get(name, 0.03), (name, seen)
            assert seen["state"] <= STATE, (name, seen)
            assert seen["stats"] <= STATS, (name, seen)
            if name in ELEMENTWISE:
                assert seen["same"] == sorted(SHAPES), (name, seen)
            if name != "LAMB8bit-clip":  # the clip's norm is summed in another order
                assert seen["same at first"] == sorted(SHAPES), (name, seen)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_only_cut_blocks_differ(world: int, tmp_path: Path) -> None:
    check(run_ranks(__name__, "ranks", tmp_path, world))


@pytest.mark.slow
def test_replicas_of_shards(tmp_path: Path) -> None:
    check(run_ranks(__name__, "ranks_of_two_meshes", tmp_path, 4))


def ranks_with_whole_blocks(folder: str) -> dict[str, Any]:
    """Codes and scales as they stand in the state: of each rank its rows."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    found = {}
    for name in ELEMENTWISE:
        plain, sharded = Layers(), shard(Layers(), mesh_of(2))
        theirs, ours = MAKERS[name](named(plain)), MAKERS[name](named(sharded))
        train(plain, theirs, range(STEPS))
        train(sharded, ours, range(STEPS))
        for layer in WHOLE_BLOCKS:
            state, expected = ours.state[getattr(sharded, layer)], theirs.state[getattr(plain, layer)]
            for key, value in expected.items():
                if key == "step":
                    found[f"{name} {layer} {key}"] = torch.equal(state[key], value)
                    continue
                parts = list(value.chunk(2))  # of rows as of their blocks: as many on the first rank
                if layer == "layers_uneven":
                    parts = list(value.split((7, 6) if value.dim() > 1 else (14, 12)))
                share = own(state[key])
                if layer == "single":
                    parts = [value, value[:0]]
                found[f"{name} {layer} {key}"] = torch.equal(share, parts[rank]) and share.dtype == value.dtype
    return found


def test_codes_are_the_same_bits_where_no_block_is_cut(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_with_whole_blocks", tmp_path):
        assert len(found) == 3 * (5 + 3) and all(found.values()), found


def ranks_naive(folder: str) -> dict[str, list[str]]:
    """What happens where each share has a grid of its own, and where its size decides what is in 8 bits."""
    from dataclasses import replace

    from lightning_scale.optim import step_plan

    torch.distributed.init_process_group("gloo")
    real = step_plan.sharded_layout

    def from_zero(*args: Any) -> Any:
        layout = real(*args)
        return replace(layout, runs=tuple(replace(s, layer_start=0) for s in layout.runs))

    def own_size(*args: Any) -> Any:
        layout = real(*args)
        layers = [
            replace(layer, numel=n) if n else layer
            for layer, n in zip(layout.layers, layout.tensor_numels, strict=True)
        ]
        return replace(layout, layers=tuple(layers))

    found = {}
    for kind in (from_zero, own_size):
        step_plan.sharded_layout = kind
        plain, sharded = Layers(), shard(Layers(), mesh_of(2))
        train(plain, MAKERS["SGD8bit"](named(plain)), range(3))
        train(sharded, MAKERS["SGD8bit"](named(sharded)), range(3))
        found[kind.__name__] = [
            name
            for (name, q), p in zip(plain.named_parameters(), sharded.parameters(), strict=True)
            if name in SHAPES and not torch.equal(*(t.detach()[~in_cut_blocks(SHAPES[name], 2)] for t in (whole(p), q)))
        ]
    return found


def test_a_grid_or_size_of_its_own_is_noticed(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_naive", tmp_path):
        assert found["from_zero"] == ["layers_cut", "layers_kernel", "flat"]
        assert found["own_size"] == ["layers_whole", "layers_uneven", "layers_cut", "layers_kernel", "flat"]


def ranks_counting(folder: str) -> dict[str, int]:
    torch.distributed.init_process_group("gloo")
    counts = {}
    for name, make in MAKERS.items():
        model = shard(Layers(), mesh_of(torch.distributed.get_world_size()))
        optimizer = make(named(model))
        train(model, optimizer, range(1))
        model(1).backward()
        counts[name] = all_reduces(optimizer.step)
    return counts


def test_collectives_of_a_step(tmp_path: Path) -> None:
    """One for the look at the gradients, and where a layer's ratio is needed one for the norms of all layers."""
    for counts in run_ranks(__name__, "ranks_counting", tmp_path):
        assert counts == {name: 1 if name in ELEMENTWISE else 2 for name in MAKERS}


def ranks_with_nan(folder: str) -> list[Any]:
    torch.distributed.init_process_group("gloo")
    found = []
    for name in ("AdamW8bit", "LAMB8bit"):
        model = shard(Layers(), mesh_of(2))
        optimizer = MAKERS[name](named(model))
        train(model, optimizer, range(2))
        optimizer.zero_grad()
        model(2).backward()
        before = [t.clone() for t in own_bits(model, optimizer)]
        if torch.distributed.get_rank() == 0:  # in the layer that the other rank has nothing of
            model.single.grad.to_local()[0, 7] = torch.nan
        optimizer.step()
        after = own_bits(model, optimizer)
        found += [all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), int(optimizer.skipped_steps)]
    return found


def test_a_nan_in_one_share_skips_the_step_everywhere(tmp_path: Path) -> None:
    assert run_ranks(__name__, "ranks_with_nan", tmp_path) == [[True, 1] * 2] * 2


def ranks_in_other_ways(folder: str) -> dict[str, bool]:
    """numba's kernels and Triton's, beside the reference on the same shards."""
    os.environ["TRITON_INTERPRET"] = "1"

    torch.distributed.init_process_group("gloo")
    found = {}
    makers = {**{k: MAKERS[k] for k in ("AdamW8bit", "LAMB8bit", "LARS8bit")}, "LAMB": lambda p: LAMB(p, lr=0.02)}
    for name, make in makers.items():
        for way, fused in (("CPU", None), ("Triton", True)):
            states = []
            for kind in (False, fused):
                model = shard(Layers(), mesh_of(2))
                model.coupling = 0.0  # else the last bit of a weight is a moment's
                optimizer = make(named(model))
                optimizer.fused = kind
                train(model, optimizer, range(2))
                states.append((model, optimizer))
            ways = {
                members.backend.name
                for sorted_ in optimizer._plan._known.values()
                for m in sorted_.values()
                for members in m
            }
            assert way.upper() in ways, ways
            (plain, theirs), (other, ours) = states
            for a, b in zip(own_bits(other, ours), own_bits(plain, theirs), strict=True):
                same = torch.equal(a, b) if a.dtype == torch.uint8 else torch.allclose(a, b, rtol=1e-5, atol=1e-6)
                found[f"{name} {way}"] = found.get(f"{name} {way}", True) and same
    return found


@pytest.mark.slow
def test_other_ways_to_the_same_codes(tmp_path: Path) -> None:
    for found in run_ranks(__name__, "ranks_in_other_ways", tmp_path, timeout=300):
        assert len(found) == 8 and all(found.values()), found


def ranks_refusing(folder: str) -> list[str]:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    from lightning_scale.optim import AdamW8bit, LAMB8bit

    torch.distributed.init_process_group("gloo")
    sentences = []
    values = torch.ones(128, 64)
    for placement in (Shard(1), Shard(0), Replicate()):
        p = torch.nn.Parameter(distribute_tensor(values, mesh_of(2), [placement]))
        assert isinstance(p, DTensor)
        try:
            optimizer = AdamW8bit([p], lr=0.1)
            p.grad = torch.ones_like(p)
            optimizer.step()
            sentences.append("")
        except ValueError as error:
            sentences.append(str(error))
    try:
        LAMB8bit([torch.nn.Parameter(distribute_tensor(values, mesh_of(2), [Shard(1)]))])
    except ValueError as error:
        sentences.append(str(error))
    return sentences


def test_shards_that_are_no_rows_are_refused(tmp_path: Path) -> None:
    for columns, rows, whole_ones, layerwise in run_ranks(__name__, "ranks_refusing", tmp_path):
        assert "AdamW8bit takes parameters sharded along their first dimension alone" in columns
        assert "(128, 64) is sharded as (Shard(dim=1),): use AdamW for it" in columns
        assert rows == whole_ones == ""
        assert "use LAMB for it" in layerwise
