"""Where layers lie in slices and shares: pure arithmetic, held to cutting a real tensor."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_scale.optim import LAMB, AdamW8bit
from lightning_scale.optim.layout import LayerInfo, Layout
from lightning_scale.strategies.zero.flat import Flat, shard_layout, slice_layout
from lightning_scale.strategies.zero.partitions import check_whole
from tests.distributed.zero_runs import needs_deepspeed

NUMELS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def _gathered(layouts: list[Layout], tensors: list[torch.Tensor], layers: list[torch.Tensor]) -> None:
    """Every element of every layer lies in one place."""
    found = [torch.full_like(layer, -1) for layer in layers]
    for layout, tensor in zip(layouts, tensors, strict=True):
        assert layout.tensor_numels == (tensor.numel(),)
        for s in layout.runs:
            target = found[s.layer][s.layer_start : s.layer_start + s.length]
            assert (target == -1).all()
            target.copy_(tensor[s.tensor_start : s.tensor_start + s.length])
    for a, b in zip(found, layers, strict=True):
        assert torch.equal(a, b)


@given(NUMELS, st.lists(st.integers(0, 7), min_size=6, max_size=6), st.integers(1, 5), st.randoms())
def test_slices(numels: list[int], gaps: list[int], ranks: int, random: object) -> None:
    """Also where layers stand in another order, with space between them."""
    layers = [torch.arange(n) + 100 * i for i, n in enumerate(numels)]
    order = list(range(len(numels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    starts, parts, end = [0] * len(numels), [], 0
    for i in order:
        starts[i] = end
        parts += [layers[i], torch.full((gaps[i],), -2)]
        end += numels[i] + gaps[i]
    long = torch.cat([*parts, torch.full((-end % ranks,), -2)])
    size = long.numel() // ranks
    infos = [LayerInfo(str(i), n, 2) for i, n in enumerate(numels)]
    layouts = [slice_layout(infos, starts, r * size, size, lambda t: None) for r in range(ranks)]
    _gathered(layouts, list(long.split(size)) if size else [], layers)
    for layout in layouts:
        assert layout.layers == tuple(infos)
        assert [s.tensor_start for s in layout.runs] == sorted(s.tensor_start for s in layout.runs)


@given(NUMELS, st.integers(1, 5))
def test_shares(numels: list[int], ranks: int) -> None:
    layers = [torch.arange(n) + 100 * i for i, n in enumerate(numels)]
    shares = [-(-n // ranks) for n in numels]
    padded = [torch.cat([t, torch.full((s * ranks - t.numel(),), -2)]) for t, s in zip(layers, shares, strict=True)]
    infos = [LayerInfo(str(i), n, 2) for i, n in enumerate(numels)]
    layouts = [shard_layout(infos, shares, r, lambda t: None) for r in range(ranks)]
    tensors = [torch.cat([t[r * s : (r + 1) * s] for t, s in zip(padded, shares, strict=True)]) for r in range(ranks)]
    _gathered(layouts, tensors, layers)


@needs_deepspeed
def test_elements_that_no_rank_holds_are_noticed() -> None:
    """And the sentence names DeepSpeed's version."""
    layer, cpu = LayerInfo("weight", 10, 2), torch.device("cpu")
    check_whole([Flat(torch.zeros(10), 0, slice_layout([layer], [0], 0, 10, lambda t: None))], cpu)
    half = slice_layout([layer], [0], 0, 5, lambda t: None)
    with pytest.raises(RuntimeError, match=r"deepspeed \d.*the ranks hold 5 elements of 'weight', which has 10"):
        check_whole([Flat(torch.zeros(5), 0, half)], cpu)
    with pytest.raises(RuntimeError, match=r"a flat tensor has 6 elements where 5 belong"):
        check_whole([Flat(torch.zeros(6), 0, slice_layout([LayerInfo("w", 5, 1)], [0], 0, 5, lambda t: None))], cpu)


@pytest.mark.parametrize("make", [LAMB, AdamW8bit])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_without_layouts_is_refused(make: Any, copied: Any) -> None:
    """It would take a flat tensor for one layer; a copy of the copy, too."""

    def layouts(optimizer: Any) -> Any:
        return {optimizer.param_groups[0]["params"][0]: slice_layout([layer], [0], 0, 5000, lambda t: None)}

    layer = LayerInfo("weight", 5000, 2)
    optimizer = make([torch.ones(5000, requires_grad=True)])
    other = copied(optimizer)
    other.step()  # one that never had layouts goes on
    optimizer.attach_layouts(layouts(optimizer))
    for twin in (copied(optimizer), copied(copied(optimizer))):
        (flat,) = twin.param_groups[0]["params"]
        flat.grad, before = torch.ones(5000), flat.detach().clone()
        for step in (twin.step, lambda: twin.decide([]), lambda: twin.init_state(twin.param_groups[0], flat)):  # noqa: B023
            with pytest.raises(RuntimeError, match=r"is a copy of one that stepped flat tensors.*attach_layouts"):
                step()
        assert torch.equal(flat, before)
        twin.load_state_dict(optimizer.state_dict())
        with pytest.raises(RuntimeError, match="is a copy of one"):
            twin.step()
        own = layouts(twin)
        twin.attach_layouts(own)
        twin.decide([(own[flat], [flat.grad])])
        twin.step()
        assert flat.lt(before).all()


def test_a_step_that_nobody_decided_on_is_refused() -> None:
    flat = torch.ones(10, requires_grad=True)
    optimizer = LAMB([flat])
    optimizer.attach_layouts({flat: slice_layout([LayerInfo("weight", 10, 2)], [0], 0, 10, lambda t: None)})
    flat.grad = torch.ones(10)
    with pytest.raises(RuntimeError, match="let the strategy take the steps"):
        optimizer.step()
