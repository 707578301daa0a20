"""Which layers hold NaN or Inf: beside torch's own test of each element."""

from __future__ import annotations

import pytest
import torch

from lightning_scale.optim.backends.norms import nonfinite
from lightning_scale.optim.layout import LayerInfo, Layout, Run
from lightning_scale.strategies.zero.flat import shares_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_each_layer(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    layers = [
        [torch.full((3, 2), largest, dtype=dtype)],
        [torch.tensor([1.0, bad], dtype=dtype)],
        [],
        [torch.zeros(0, dtype=dtype), torch.ones(2), torch.full((4,), bad)],
        [torch.zeros((), dtype=dtype), torch.ones(5, dtype=torch.float64) * 1e300],
    ]
    expected = [any(bool((~t.isfinite()).any()) for t in tensors) for tensors in layers]
    assert nonfinite(layers, CPU).tolist() == expected == [False, True, False, True, False]
    assert nonfinite([], CPU).shape == (0,)


@pytest.mark.parametrize("cuts", [[], [4], [2, 3, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_pieces_cut_anywhere(cuts: list[int]) -> None:
    """A flat tensor of 10: two elements of padding, then 5 of layer 1, one of padding, 2 of layer 0."""
    layers = tuple(LayerInfo(name, 9, 1) for name in "abc")
    layout = Layout(layers, (Run(1, 0, 2, 0, 5), Run(0, 0, 8, 0, 2)), (10,))
    flat = torch.arange(10.0)
    pieces = list(flat.tensor_split(cuts))
    found = shares_of(layout, pieces)
    assert [torch.cat([*parts, torch.zeros(0)]).tolist() for parts in found] == [[8, 9], [2, 3, 4, 5, 6], []]
