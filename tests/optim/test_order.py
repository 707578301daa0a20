"""The order in which one launch takes both passes: nothing waits for what comes after it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from lightning_scale.optim.backends.triton.chunks import chunks_of
from lightning_scale.optim.backends.triton.turns import order_of
from lightning_scale.optim.layout import LayerInfo, Layout, Run


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    chunk=st.integers(1, 20),
    lag=st.integers(0, 120),
)
def test_every_pass_once_and_the_second_after_the_whole_first(sizes: list[int], chunk: int, lag: int) -> None:
    layout = Layout(
        tuple(LayerInfo(str(i), n, 2) for i, n in enumerate(sizes)),
        tuple(Run(i, i, 0, 0, n) for i, n in enumerate(sizes)),
        tuple(sizes),
    )
    chunks = chunks_of(layout, torch.device("cpu"), chunk)
    order = order_of(layout, chunks, lag).tolist()
    assert sorted(order) == list(range(-chunks.count, chunks.count))

    layer_of, first = chunks.layer.tolist(), chunks.first.tolist()
    place = {item: i for i, item in enumerate(order)}
    seen = 0  # elements that pass 1 has gone through
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    for item in order:
        if item >= 0:
            seen += int(chunks.length[item])
            continue
        layer = layer_of[-1 - item]
        assert all(place[c] < place[item] for c in range(first[layer], first[layer + 1]))
        assert seen >= min(ends[layer] + lag, ends[-1])  # not before pass 1 is far enough ahead
        if layer + 1 < len(sizes):  # nor later than when the layer is over with which it is
            over = next((e for e in ends if e >= ends[layer] + lag), ends[-1])
            assert seen <= over
    backwards = [-1 - item for item in order if item < 0]
    for layer in range(len(sizes)):
        mine = [c for c in backwards if layer_of[c] == layer]
        assert mine == sorted(mine, reverse=True)
