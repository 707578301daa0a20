"""What is brought to the kernels in rows: padded copies of short runs, and numbers that are the same along a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_scale.optim.kernels.compiled.rows import WIDTH, Plan, Run

# No program is compiled for a single row.
_FEWEST = 2


def row_count(runs: Sequence[Run]) -> int:
    """Rows of the buffer that holds these runs."""
    return max(_FEWEST, sum(run.rows for run in runs))


def padded(parts: Sequence[Tensor], runs: Sequence[Run], padding: float) -> Tensor:
    """1-D parts, one a run, as rows of a new buffer; ``padding`` where a row has no element."""
    buffer = torch.full((row_count(runs), WIDTH), padding, dtype=parts[0].dtype, device="cpu")
    torch._foreach_copy_(parts_of(buffer, runs), list(parts))
    return buffer


def parts_of(buffer: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """The runs' elements in their buffer, 1-D views."""
    flat, first = buffer.view(-1), runs[0].row
    begins = [(run.row - first) * WIDTH + run.lead for run in runs]
    return [flat[begin : begin + run.length] for begin, run in zip(begins, runs, strict=True)]


def elements(tensors: Sequence[Tensor], runs: Iterable[Run]) -> list[Tensor]:
    """The runs where they lie, in contiguous local tensors: 1-D views."""
    return [tensors[run.tensor].view(-1)[run.start : run.start + run.length] for run in runs]


def layer_elements(tensors: Sequence[Tensor], plan: Plan, layer: int) -> list[Tensor]:
    """A layer's elements where they lie, as `elements`."""
    return elements(tensors, [run for run in (*plan.whole, *plan.padded) if run.layer == layer])


def alike(numbers: tuple[float, ...], rows: int) -> Tensor:
    """[rows, K] float32, every row alike."""
    return torch.tensor([numbers], dtype=torch.float32, device="cpu").expand(rows, -1).contiguous()


same_numbers = lru_cache(maxsize=16)(alike)
"""`alike`, read only. Steps use the same few again, layer after layer."""


def numbers_of(numbers: Sequence[tuple[float, ...]], runs: Sequence[Run]) -> Tensor:
    """[rows, K] float32: each run's numbers on each of its rows."""
    counts = [run.rows for run in runs]
    counts[-1] += row_count(runs) - sum(counts)
    table = torch.tensor(numbers, dtype=torch.float32, device="cpu")
    return torch.repeat_interleave(table, torch.tensor(counts, device="cpu"), dim=0)
