"""The code's values, and its nearest code found in two ways, against a search through all 256 values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_scale.optim.quantization import SIGNED, UNSIGNED, Code, nearest_by_arithmetic, nearest_by_search

from . import tables

both_codes = pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
both_ways = pytest.mark.parametrize("nearest", [nearest_by_search, nearest_by_arithmetic])


def neighbours(x: Tensor, how_many: int = 4) -> Tensor:
    """The numbers and the `how_many` next float32 on either side."""
    found = [x]
    for end in (-torch.inf, torch.inf):
        y = x
        for _ in range(how_many):
            y = torch.nextafter(y, torch.full_like(y, end))
            found.append(y)
    return torch.cat(found)


def interesting(code: Code) -> Tensor:
    """Every middle, threshold, value and power of ten with their neighbours, the smallest numbers, and the ends."""
    exact = torch.from_numpy(tables.values(code.signed))
    points = torch.cat([
        exact.float(), ((exact[:-1] + exact[1:]) / 2).float(), code.thresholds(),
        torch.tensor([10.0**i for i in range(-8, 1)]), torch.tensor([0.0, 2.0**-149, 2.0**-126, 1e-38]),
    ])  # fmt: skip
    points = neighbours(torch.cat([points, -points]))
    return points[points.abs() <= 1] if code.signed else points[(points >= 0) & (points <= 1)]


@both_codes
def test_the_values_are_those_of_the_paper(code: Code) -> None:
    values = code.values()
    assert values.dtype == torch.float32 and len(values) == 256
    np.testing.assert_allclose(values.double().numpy(), tables.values(code.signed), rtol=2**-24, atol=0)
    assert bool((values.diff() > 0).all()) and values[code.zero] == 0 and values[-1] == 1
    assert values[0] == (-0.99296875 if code.signed else 0)
    if code.signed:
        assert torch.equal(values[:127], -values[128:255].flip(0))


def test_some_values_by_hand() -> None:
    assert UNSIGNED.values()[1:3].tolist() == pytest.approx([0.325e-6, 0.775e-6], rel=1e-7)
    assert SIGNED.values()[128] == pytest.approx(0.55e-6, rel=1e-7)
    assert SIGNED.values()[129:131].tolist() == pytest.approx([3.25e-6, 7.75e-6], rel=1e-7)
    assert UNSIGNED.values()[254] == pytest.approx(1 - 0.45 / 128, rel=1e-7)


@both_ways
@both_codes
def test_it_is_the_nearest_value_at_every_border(code: Code, nearest: object) -> None:
    x = interesting(code)
    assert callable(nearest)
    got = nearest(x, code).long().numpy()
    np.testing.assert_array_equal(got, tables.nearest(x.double().numpy(), code.signed))


@both_codes
def test_both_ways_agree_on_a_dense_sweep(code: Code) -> None:
    """Every 499th float32 in [-1, 1] (two million of each sign), denormal numbers among them, and 65,536 around each
    threshold."""
    end = torch.tensor(1.0).view(torch.int32).item()
    positive = torch.arange(0, int(end) + 1, 499, dtype=torch.int32).view(torch.float32)
    assert len(positive) > 2_000_000 and int((positive < 2.0**-126).sum()) > 10_000
    around = code.thresholds().abs().view(torch.int32)[:, None] + torch.arange(-(2**15), 2**15, dtype=torch.int32)
    for x in (positive, around.clamp(0, end).view(torch.float32)):
        assert torch.equal(nearest_by_search(x, code), nearest_by_arithmetic(x, code))
        if code.signed:
            assert torch.equal(nearest_by_search(-x, code), nearest_by_arithmetic(-x, code))


@both_codes
@settings(max_examples=300, deadline=None)
@given(x=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
@example(x=[0.0, -0.0])
def test_any_number(code: Code, x: list[float]) -> None:
    tensor = torch.tensor(x if code.signed else [abs(v) for v in x])
    got = nearest_by_search(tensor, code)
    assert torch.equal(got, nearest_by_arithmetic(tensor, code))
    np.testing.assert_array_equal(got.long().numpy(), tables.nearest(tensor.double().numpy(), code.signed))


@both_ways
def test_a_positive_second_moment_is_never_0(nearest: object) -> None:
    assert callable(nearest)
    tiny = torch.tensor([0.0, -0.0, 2.0**-149, 1e-38, 1e-8, 0.1624e-6])
    assert nearest(tiny, UNSIGNED).tolist() == [0, 0, 1, 1, 1, 1]
    assert nearest(tiny, SIGNED).tolist() == [127] * 6


@both_ways
@both_codes
def test_beyond_the_ends(code: Code, nearest: object) -> None:
    assert callable(nearest)
    x = torch.tensor([[torch.inf, 3.0], [-torch.inf, -1.0]])
    assert nearest(x, code).tolist() == [[255, 255], [0, 0]]
    assert nearest(torch.empty(0), code).shape == (0,)


@both_ways
@both_codes
def test_the_codes_own_values_are_kept(code: Code, nearest: object) -> None:
    assert callable(nearest)
    assert nearest(code.values(), code).tolist() == list(range(256))
