"""Scales written row by row: another share can be made of them, and only blocks that were cut are rounded anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_scale.optim.quantization import BLOCK, SIGNED, UNSIGNED, Code, dequantize, quantize
from lightning_scale.optim.state.sharded_moments import Rows, by_block, by_row, columns

SHAPES = [(40, 1), (700, 9), (1, 5000), (13, 256), (13, 512), (30, 255), (30, 257), (9, 1000), (5, 96), (3, 640)]


def shares(count: int, ranks: int) -> list[tuple[int, int]]:
    """First row and number of rows on each rank, as torch.chunk gives them; some may be empty."""
    most = -(-count // ranks)
    return [(min(r * most, count), max(0, min(most, count - r * most))) for r in range(ranks)]


def saved(values: Tensor, code: Code, count: int, length: int, ranks: int) -> tuple[Tensor, Tensor]:
    """Codes and row scales of all rows together, of ranks that have rounded each its own share."""
    codes, scales = [], []
    for first, number in shares(count, ranks):
        rows = Rows(first, number, length)
        own, absmax = quantize(values[rows.start : rows.start + number * length], code, rows.start)
        assert len(absmax) == rows.blocks
        codes.append(own)
        scales.append(by_row(absmax, rows))
    return torch.cat(codes), torch.cat(scales)


@pytest.mark.parametrize("code", [SIGNED, UNSIGNED])
@pytest.mark.parametrize(("count", "length"), SHAPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_as_many_ranks_have_the_same_bits(code: Code, count: int, length: int, ranks: int) -> None:
    values = _values(count * length, code)
    codes, scales = saved(values, code, count, length, ranks)
    assert scales.shape == (count, columns(length))
    for first, number in shares(count, ranks):
        rows = Rows(first, number, length)
        own, absmax = quantize(values[rows.start : rows.start + number * length], code, rows.start)
        part = codes[rows.start : rows.start + number * length]
        again, scale = by_block(scales[first : first + number], part, rows, code)
        assert torch.equal(again, own) and torch.equal(scale, absmax)


@pytest.mark.parametrize(("count", "length"), SHAPES)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 5), (8, 3), (4, 2)])
def test_other_ranks_round_anew_only_what_was_cut(count: int, length: int, before: int, after: int) -> None:
    values = _values(count * length, SIGNED)
    codes, scales = saved(values, SIGNED, count, length, before)
    # What the saved numbers are: each old share read as it was written.
    read = torch.cat(
        [
            dequantize(*quantize(values[a * length : (a + n) * length], SIGNED, a * length), SIGNED, a * length)
            for a, n in shares(count, before)
        ]
    )
    old_edges = {a * length for a, n in shares(count, before) if n} | {count * length}
    for first, number in shares(count, after):
        rows = Rows(first, number, length)
        end = rows.start + number * length
        own, absmax = by_block(scales[first : first + number], codes[rows.start : end], rows, SIGNED)
        assert len(absmax) == rows.blocks
        now = dequantize(own, absmax, SIGNED, rows.start)
        for block in range(rows.blocks):
            a = max(rows.start, (rows.start // BLOCK + block) * BLOCK)
            b = min(end, (rows.start // BLOCK + block + 1) * BLOCK)
            here = slice(a - rows.start, b - rows.start)
            if any(a < edge < b for edge in old_edges):
                expected, _ = quantize(read[a:b], SIGNED, a)
                assert torch.equal(own[here], expected)
            else:
                assert torch.equal(now[here], read[a:b]) and torch.equal(own[here], codes[a:b])


def test_rows_of_whole_blocks_take_no_more_memory() -> None:
    assert [columns(length) for length in (256, 512, 768, 1024)] == [1, 2, 3, 4]
    assert [columns(length) for length in (1, 2, 3, 255, 257, 384)] == [1, 1, 2, 2, 2, 2]


def test_no_more_columns_than_a_row_can_touch() -> None:
    for length in range(1, 1100):
        starts = range(0, BLOCK * length, length)
        touched = max((start + length - 1) // BLOCK - start // BLOCK + 1 for start in starts)
        assert columns(length) == touched, length


def _values(count: int, code: Code) -> Tensor:
    # Neighbours differ in size, so that the parts of a block have scales of their own.
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) * torch.linspace(0.1, 3, count)
    return values if code.signed else values.square()
