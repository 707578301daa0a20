"""Layers' state through layouts that cut them anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_scale.optim import LAMB8bit
from lightning_scale.optim.layout import LayerInfo, Layout, Run
from lightning_scale.optim.quantization import BLOCK, SIGNED, UNSIGNED, block_count, dequantize, quantize
from lightning_scale.optim.state.moments import new_moment
from lightning_scale.optim.state.whole import Shard, fill, shards, whole

FROM = 512
Wholes = dict[str, dict[str, Tensor]]


def layers_state(shapes: list[tuple[int, ...]], seed: int = 0) -> Wholes:
    """As an unsharded run keeps it: moments in 8 bits from `FROM` elements on, and a master copy."""
    generator = torch.Generator().manual_seed(seed)
    state: Wholes = {}
    for i, shape in enumerate(shapes):
        numel = torch.Size(shape).numel()
        # Magnitudes differ from element to element, so that the two parts of a cut block have other scales.
        values = torch.randn(numel, generator=generator) * torch.logspace(-3, 0, numel)
        own = {"step": torch.tensor(3.0), "master": values.clone().view(shape)}
        for key, code, x in (("exp_avg", SIGNED, values), ("exp_avg_sq", UNSIGNED, values.square())):
            if numel >= FROM:
                codes, own[f"{key}_absmax"] = quantize(x, code)
                own[key] = codes.view(shape)
            else:
                own[key] = x.view(shape)
        state[f"layer{i}"] = own
    return state


def flat_layouts(shapes: list[tuple[int, ...]], cuts: list[int]) -> list[Layout]:
    """One flat tensor a rank; the layers follow one another and are cut at these places."""
    layers = [LayerInfo(f"layer{i}", torch.Size(s).numel(), len(s)) for i, s in enumerate(shapes)]
    total = sum(layer.numel for layer in layers)
    edges = sorted({0, total, *(c % (total + 1) for c in cuts)})
    found = []
    for begin, end in pairwise(edges):
        runs, offset = [], 0
        for number, layer in enumerate(layers):
            a, b = max(begin, offset), min(end, offset + layer.numel)
            if a < b:
                runs.append(Run(number, 0, a - begin, a - offset, b - a))
            offset += layer.numel
        found.append(Layout(tuple(layers), tuple(runs), (end - begin,)))
    return found


def new_state(layout: Layout) -> dict[str, Tensor]:
    """A flat tensor's, as an 8-bit optimizer makes it."""
    flat = torch.zeros(layout.tensor_numels[0])
    state = {"step": torch.zeros(()), "master": flat.clone()}
    for key in ("exp_avg", "exp_avg_sq"):
        state |= new_moment(key, flat, layout.layers, layout.runs, FROM)
    return state


def spread(layouts: list[Layout], wholes: Wholes) -> list[dict[str, Tensor]]:
    states = [new_state(layout) for layout in layouts]
    for layout, state in zip(layouts, states, strict=True):
        fill(layout, state, wholes, FROM)
    return states


def gathered(shapes: list[tuple[int, ...]], layouts: list[Layout], states: list[dict[str, Tensor]]) -> Wholes:
    parts: dict[str, list[Shard]] = {}
    for layout, state in zip(layouts, states, strict=True):
        for name, piece in shards(layout, state, FROM):
            parts.setdefault(name, []).append(piece)
    return {name: whole(name, shapes[int(name[5:])], found) for name, found in parts.items()}


def assert_equal(a: Wholes, b: Wholes) -> None:
    assert {n: sorted(s) for n, s in a.items()} == {n: sorted(s) for n, s in b.items()}
    for name, state in a.items():
        for key, value in state.items():
            assert value.dtype == b[name][key].dtype and torch.equal(value, b[name][key]), (name, key)


shapes_of = st.lists(
    st.sampled_from([(1,), (7,), (3, 100), (512,), (600,), (2, 900), (40, 33), (1, 2560)]), min_size=1, max_size=5
)
cuts_of = st.lists(st.integers(0, 20_000), max_size=5)


@settings(max_examples=60, deadline=None)
@given(shapes_of, cuts_of, st.integers(0, 1000))
def test_there_and_back_is_the_same_bits(shapes: list[tuple[int, ...]], cuts: list[int], seed: int) -> None:
    wholes = layers_state(shapes, seed)
    layouts = flat_layouts(shapes, cuts)
    assert_equal(gathered(shapes, layouts, spread(layouts, wholes)), wholes)


@settings(max_examples=60, deadline=None)
@given(shapes_of, cuts_of, cuts_of, st.integers(0, 1000))
def test_scales_of_both_sides_of_a_cut_are_kept(
    shapes: list[tuple[int, ...]], cuts: list[int], others: list[int], seed: int
) -> None:
    layouts = flat_layouts(shapes, cuts)
    states = spread(layouts, layers_state(shapes, seed))
    for layout, state in zip(layouts, states, strict=True):  # each rank codes its own part of a block
        for key, code in (("exp_avg", SIGNED), ("exp_avg_sq", UNSIGNED)):
            for s in layout.runs:
                if layout.layers[s.layer].numel < FROM:
                    continue
                here = slice(s.tensor_start, s.tensor_start + s.length)
                done = sum(
                    block_count(o.layer_start, o.length)
                    for o in layout.runs
                    if o.tensor_start < s.tensor_start and layout.layers[o.layer].numel >= FROM
                )
                scales = slice(done, done + block_count(s.layer_start, s.length))
                values = dequantize(state[key][here], state[f"{key}_absmax"][scales], code, s.layer_start)
                codes, absmax = quantize(values, code, s.layer_start)
                state[key][here], state[f"{key}_absmax"][scales] = codes, absmax
    wholes = gathered(shapes, layouts, states)
    again = spread(layouts, wholes)
    for before, after in zip(states, again, strict=True):
        assert before.keys() == after.keys()
        for key in before:
            coded_small = key in ("exp_avg", "exp_avg_sq") and f"{key}_small" in before  # those codes are not used
            assert coded_small or torch.equal(before[key], after[key]), key

    # In any other layout the numbers stay, but for the rounding of blocks whose parts had scales of their own.
    elsewhere = flat_layouts(shapes, others)
    moved = gathered(shapes, elsewhere, spread(elsewhere, wholes))
    for name, state in wholes.items():
        for key, code in (("exp_avg", SIGNED), ("exp_avg_sq", UNSIGNED)):
            if f"{key}_absmax" not in state:
                assert torch.equal(state[key], moved[name][key])
                continue
            cut = state.get(f"{key}_cut_starts", torch.zeros(0, dtype=torch.int64)) // BLOCK
            untouched = ~torch.isin(torch.arange(state[key].numel()) // BLOCK, cut)
            assert torch.equal(state[key].view(-1)[untouched], moved[name][key].view(-1)[untouched])
            old, new = (numbers(s, key, code) for s in (state, moved[name]))
            assert torch.equal(old[untouched], new[untouched])
            largest = old.abs().max()
            assert (old - new).abs().max() <= largest * 0.04  # half of the widest gap between two codes


def numbers(state: dict[str, Tensor], key: str, code: object) -> Tensor:
    """What codes with cut blocks stand for, element by element."""
    flat = state[key].view(-1)
    scale = state[f"{key}_absmax"].repeat_interleave(BLOCK)[: flat.numel()].clone()
    starts = state.get(f"{key}_cut_starts")
    if starts is not None:
        for start, absmax in zip(starts.tolist(), state[f"{key}_cut_absmax"].tolist(), strict=True):
            scale[start : (start // BLOCK + 1) * BLOCK] = absmax
    return code.values()[flat.int()] * scale  # type: ignore[attr-defined]


def test_replicas_count_once() -> None:
    shapes = [(40, 33)]
    layouts = flat_layouts(shapes, [500])
    states = spread(layouts, layers_state(shapes))
    assert_equal(gathered(shapes, layouts * 2, states * 2), layers_state(shapes))


def test_errors() -> None:
    shapes = [(600,), (7,)]
    wholes = layers_state(shapes)
    layouts = flat_layouts(shapes, [100])
    states = spread(layouts, wholes)
    with pytest.raises(ValueError, match=r"'layer0' do not follow one another from element 100 of 600 on"):
        whole("layer0", (600,), [p for n, p in shards(layouts[0], states[0], FROM) if n == "layer0"])
    with pytest.raises(ValueError, match=r"no state of 'layer1'"):
        fill(layouts[1], new_state(layouts[1]), {"layer0": wholes["layer0"]}, FROM)
    for layer, sentence in (
        ({**wholes["layer0"], "exp_avg": torch.zeros(600)}, "exp_avg of 'layer0' is torch.float32, and this optimizer"),
        ({k: v for k, v in wholes["layer0"].items() if k != "exp_avg_sq"}, "no exp_avg_sq of 'layer0'"),
        ({**wholes["layer0"], "exp_avg": torch.zeros(5, dtype=torch.uint8)}, "has 5 elements, and the layer 600"),
        ({**wholes["layer0"], "exp_avg_absmax": torch.zeros(2)}, "has 2 scales for 600 elements"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fill(layouts[0], new_state(layouts[0]), {**wholes, "layer0": layer}, FROM)


def test_layers_that_have_missed_steps() -> None:
    """They keep their own step counts in a flat tensor; one that has taken no step has no state, and gets zeros."""
    shapes = [(600,), (7,), (9,), (600,)]
    wholes = layers_state(shapes)
    wholes |= {"layer1": {**wholes["layer1"], "step": torch.tensor(4.0)}, "layer2": {}, "layer3": {}}
    layouts = flat_layouts(shapes, [100])
    states = [new_state(layout) for layout in layouts]
    for layout, state in zip(layouts, states, strict=True):
        for key in state.keys() - {"step"}:
            state[key].fill_(1)  # what is not written would stay
        fill(layout, state, wholes, FROM)
    found = gathered(shapes, layouts, states)
    for name in ("layer0", "layer1"):
        assert_equal({name: found[name]}, {name: wholes[name]})
    assert float(found["layer2"]["step"]) == float(found["layer3"]["step"]) == 0
    assert all(not found["layer2"][key].any() for key in ("exp_avg", "exp_avg_sq"))
    for key, code in (("exp_avg", SIGNED), ("exp_avg_sq", UNSIGNED)):
        assert not dequantize(found["layer3"][key], found["layer3"][f"{key}_absmax"], code).any()


def test_an_unsharded_optimizer_loads_blocks_that_were_cut() -> None:
    """The block gets one scale; all others keep their bits."""
    weight = torch.nn.Parameter(torch.randn(4, 1500, generator=torch.Generator().manual_seed(0)))
    optimizer = LAMB8bit([weight])
    weight.grad = torch.randn(4, 1500, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 0, 1500)
    optimizer.step()
    saved = optimizer.state_dict()
    own = saved["state"][0]
    cut = {**own, "exp_avg_cut_starts": torch.tensor([700]), "exp_avg_cut_absmax": own["exp_avg_absmax"][2:3] * 3}
    optimizer.load_state_dict({**saved, "state": {0: cut}})

    loaded = optimizer.state[weight]
    assert loaded.keys() == own.keys()
    before, after = numbers(cut, "exp_avg", SIGNED), numbers(loaded, "exp_avg", SIGNED)
    block = torch.arange(6000) // BLOCK == 2
    assert torch.equal(before[~block], after[~block])
    assert not torch.equal(loaded["exp_avg"].view(-1)[block], own["exp_avg"].view(-1)[block])
    assert float(loaded["exp_avg_absmax"][2]) == float(before[block].abs().max())
    assert (before - after)[block].abs().max() <= before[block].abs().max() * 0.04
    assert torch.equal(loaded["exp_avg_sq"], own["exp_avg_sq"])
