"""Blocks of a segment, and quantization block by block, against a quantizer written anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_scale.optim.quantization import (
    BLOCK,
    SIGNED,
    UNSIGNED,
    Code,
    block_count,
    blocks,
    dequantize,
    nearest_by_arithmetic,
    nearest_by_search,
    quantize,
)

from . import tables
from .test_nearest import both_codes

starts = st.one_of(st.integers(0, 600), st.sampled_from([255, 256, 257, 512, 2**20 - 1, 2**40 + 3]))
lengths = st.one_of(st.integers(0, 1200), st.sampled_from([255, 256, 257, 512, 513]))


def numbers(seed: int, length: int, code: Code, spread: float = 1.0) -> Tensor:
    """Normal numbers over many orders of magnitude, some of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(length) * np.exp(spread * rng.standard_normal(length)) * (rng.random(length) > 0.05)
    return torch.from_numpy(x if code.signed else x**2).float()


@settings(max_examples=200, deadline=None)
@given(start=starts, length=lengths)
def test_the_blocks_of_a_segment(start: int, length: int) -> None:
    """Elements share a block exactly where they share one of the whole parameter's."""
    found = blocks(start, length)
    assert len(found) == block_count(start, length)
    owner = [number for number, (_, size) in enumerate(found) for _ in range(size)]
    assert len(owner) == length and [a for a, _ in found] == [owner.index(i) for i in range(len(found))]
    whole = [(start + i) // BLOCK for i in range(length)]
    assert owner == [w - whole[0] for w in whole]


def test_the_blocks_by_hand() -> None:
    assert blocks(0, 600) == [(0, 256), (256, 256), (512, 88)]
    assert blocks(250, 600) == [(0, 6), (6, 256), (262, 256), (518, 82)]
    assert blocks(250, 3) == [(0, 3)] and blocks(255, 2) == [(0, 1), (1, 1)] and blocks(7, 0) == []


@both_codes
@settings(max_examples=100, deadline=None)
@given(start=starts, length=lengths, seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 1.0, 6.0]))
def test_against_a_quantizer_written_anew(code: Code, start: int, length: int, seed: int, spread: float) -> None:
    x = numbers(seed, length, code, spread)
    codes, absmax = quantize(x, code, start)
    expected_codes, expected_absmax = tables.quantize(x.numpy(), code.signed, start)
    assert (codes.dtype, codes.shape, absmax.dtype) == (torch.uint8, x.shape, torch.float32)
    np.testing.assert_array_equal(codes.long().numpy(), expected_codes)
    np.testing.assert_array_equal(absmax.double().numpy(), expected_absmax)
    back = dequantize(codes, absmax, code, start)
    assert back.dtype == torch.float32 and back.shape == x.shape
    np.testing.assert_array_equal(
        back.double().numpy(), tables.dequantize(expected_codes, expected_absmax, code.signed, start)
    )
    for nearest in (nearest_by_search, nearest_by_arithmetic):
        again = quantize(x, code, start, nearest)
        assert torch.equal(again[0], codes) and torch.equal(again[1], absmax)


@both_codes
@settings(max_examples=100, deadline=None)
@given(start=starts, length=lengths, seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 2.0]))
def test_the_error_is_the_one_stated(code: Code, start: int, length: int, seed: int, spread: float) -> None:
    x = numbers(seed, length, code, spread)
    codes, absmax = quantize(x, code, start)
    error = (dequantize(codes, absmax, code, start).double() - x.double()).abs().numpy()
    worst = 0.00704 if code.signed else 0.00352
    table = tables.values(code.signed)
    for number, (first, size) in enumerate(blocks(start, length)):
        scale = float(absmax[number])
        here = error[first : first + size]
        assert (here <= worst * scale).all()
        if scale:
            scaled = x[first : first + size].double().numpy() / scale
            upper = np.clip(np.searchsorted(table, scaled), 1, 255)
            half = np.where(scaled < table[0], table[0] + 1, (table[upper] - table[upper - 1]) / 2)
            half = np.where((not code.signed) & (scaled < table[1]), table[1], half)
            assert (here <= scale * half * (1 + 1e-6) + 2.0**-24 * np.abs(x[first : first + size].numpy())).all()


@both_codes
@pytest.mark.parametrize("scale", [1.0, 0.7, 3e-30, 2.5e38, 1e-20])
def test_codes_are_what_their_numbers_are_quantized_to(code: Code, scale: float) -> None:
    """Read and stored again, with 1 in each block, codes and absmax stay."""
    codes = torch.arange(255, -1, -1, dtype=torch.uint8).repeat(3)
    absmax = torch.tensor([scale, scale / 3, scale / 7])
    again = quantize(dequantize(codes, absmax, code), code)
    assert torch.equal(again[0], codes) and torch.equal(again[1], absmax)


@both_codes
def test_zeros(code: Code) -> None:
    codes, absmax = quantize(torch.tensor([0.0, -0.0] * 200), code, 100)
    assert codes.eq(code.zero).all() and absmax.tolist() == [0.0, 0.0]
    back = dequantize(codes, absmax, code, 100)
    assert back.eq(0).all() and not back.signbit().any()


@both_codes
def test_denormal_numbers(code: Code) -> None:
    tiny = 2.0**-149
    x = torch.tensor([0.0, tiny, 2 * tiny, 1000 * tiny])
    codes, absmax = quantize(x, code)
    assert absmax.item() == 1000 * tiny and codes[-1] == 255
    assert dequantize(codes, absmax, code).tolist() == pytest.approx(x.tolist(), rel=0, abs=8 * tiny)
    codes, absmax = quantize(x[:2], code)
    assert codes.tolist() == [code.zero, 255] and dequantize(codes, absmax, code).tolist() == [0.0, tiny]


@both_codes
def test_infinite_numbers_count_as_the_largest_finite_one(code: Code) -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([1.0, torch.inf, largest])
    codes, absmax = quantize(x, code)
    assert absmax.item() == largest
    smallest = 0.0 if code.signed else pytest.approx(0.325e-6 * largest)
    assert dequantize(codes, absmax, code).tolist() == [smallest, largest, largest]
    if code.signed:
        assert dequantize(*quantize(-x, code), code)[1:].isfinite().all()


@both_codes
def test_a_nan_spoils_its_block_and_no_other(code: Code) -> None:
    x = torch.ones(600)
    x[300] = torch.nan
    codes, absmax = quantize(x, code)
    assert codes.dtype == torch.uint8
    back = dequantize(codes, absmax, code)
    assert back[256:512].isnan().all() and back[:256].eq(1).all() and back[512:].eq(1).all()


def test_a_block_does_not_know_of_its_neighbours() -> None:
    x = numbers(0, 1024, SIGNED)
    codes, absmax = quantize(x, SIGNED)
    x[256:512] *= 1000
    other, scales = quantize(x, SIGNED)
    rest = torch.ones(1024, dtype=torch.bool)
    rest[256:512] = False
    assert torch.equal(codes[rest], other[rest]) and torch.equal(absmax[[0, 2, 3]], scales[[0, 2, 3]])


def test_the_input_stays_as_it_was() -> None:
    x = numbers(1, 700, UNSIGNED)
    before = x.clone()
    codes, absmax = quantize(x, UNSIGNED, 3)
    kept = codes.clone(), absmax.clone()
    dequantize(codes, absmax, UNSIGNED, 3)
    assert torch.equal(x, before) and torch.equal(codes, kept[0]) and torch.equal(absmax, kept[1])
