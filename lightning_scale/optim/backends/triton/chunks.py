"""Where the elements lie, in a form that one launch can go through: addresses of tensors, and chunks of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lightning_scale.optim.backends.cut import cut
from lightning_scale.optim.backends.device import constant, is_capturing
from lightning_scale.optim.layout import LayerInfo, Layout
from lightning_scale.optim.state.moments import StoredMoment

CHUNK = 1 << 15
"""Elements that one program takes, at most."""


@dataclass(frozen=True)
class Chunks:
    """Runs of elements, each inside one run, in the order of the layers; C of them, L layers.

    One program takes one chunk, and leaves one partial sum; a layer's sums are those of its consecutive chunks.
    """

    tensor: Tensor
    """[C] int32: the local tensor."""
    start: Tensor
    """[C] int64: the first element in it."""
    length: Tensor
    """[C] int32: how many elements."""
    layer: Tensor
    """[C] int32: whose elements they are."""
    layer_start: Tensor
    """[C] int64: the first element in it."""
    first: Tensor
    """[L + 1] int32: each layer's first chunk."""

    @property
    def count(self) -> int:
        return self.tensor.numel()

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the kernels take."""
        return self.tensor, self.start, self.length, self.layer


def chunks_of(layout: Layout, device: torch.device, size: int = CHUNK) -> Chunks:
    """A layout's runs, cut into chunks of at most ``size`` elements; an empty run gives one of none."""
    key = ("chunks", device, size)
    if key not in layout.cache:
        layout.cache[key] = _cut(layout, device, size)
    chunks: Chunks = layout.cache[key]
    return chunks


def _cut(layout: Layout, device: torch.device, size: int) -> Chunks:
    rows = cut(layout, [False] * len(layout.layers), size)
    counts = [0] * (len(layout.layers) + 1)
    for row in rows:
        counts[row.layer + 1] += 1

    def column(numbers: Iterable[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(list(numbers), dtype=dtype, device="cpu").to(device)

    return Chunks(
        tensor=column((row.tensor for row in rows), torch.int32),
        start=column((row.start for row in rows), torch.int64),
        length=column((row.length for row in rows), torch.int32),
        layer=column((row.layer for row in rows), torch.int32),
        layer_start=column((row.layer_start for row in rows), torch.int64),
        first=column(accumulate(counts), torch.int32),
    )


def pointers(layout: Layout, name: str, tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """[tensors] int64: where each begins. Brought to the device only where one has moved since the last step."""
    return constant(layout, name, [0 if t is None else t.data_ptr() for t in tensors] or [0], torch.int64, device)


# Elements that one program takes, at most; whole blocks. Small, so that there are many more programs than a device runs at
# one time: then the last ones to end are a small part of all.
QUANTIZED_CHUNK = 1 << 14


@dataclass(frozen=True)
class QuantizedChunks:
    """C chunks: first those of layers in 8 bits, then those of small layers, each in the order of the layers; L layers."""

    table: Tensor
    """[C, 6] int64: the local tensor; where in it the grid's row begins that holds the chunk's first element; which element
    of this row is the first, and which the first beyond; the layer; where in the state the scales (in 8 bits) or the
    row's elements (small) begin."""
    layer_start: Tensor
    """[C] int64: where in the layer the grid's row begins."""
    quantized: int
    """How many are in 8 bits."""
    begin: Tensor
    """[L] int32: each layer's first chunk."""
    end: Tensor
    """[L] int32: the one after its last."""
    aligned: tuple[bool, bool]
    """Whether all rows, in 8 bits and small, begin at a multiple of four elements."""

    @property
    def count(self) -> int:
        return self.table.shape[0]


def quantized_chunks(layout: Layout, quantized: Callable[[LayerInfo], bool], device: torch.device) -> QuantizedChunks:
    """The chunks of a layout, kept with it.

    Args:
        layout: What to cut.
        quantized: Which layers are in 8 bits.
        device: Where the chunks are to be.
    """
    kinds = tuple(quantized(layer) for layer in layout.layers)
    key = ("8-bit chunks", kinds, QUANTIZED_CHUNK, device)
    if key not in layout.cache:
        layout.cache[key] = _cut_quantized(layout, kinds, device)
    chunks: QuantizedChunks = layout.cache[key]
    return chunks


def _cut_quantized(layout: Layout, quantized: tuple[bool, ...], device: torch.device) -> QuantizedChunks:
    rows = [row for row in cut(layout, quantized, QUANTIZED_CHUNK) if row.length]
    table, starts = [], []
    begin, end = [0] * len(layout.layers), [0] * len(layout.layers)
    for number, row in enumerate(rows):
        lead, state = (row.lead, row.block) if row.quantized else (0, row.at)
        table.append((row.tensor, row.start - lead, lead, lead + row.length, row.layer, state))
        starts.append(row.layer_start - lead)
        begin[row.layer] = number if end[row.layer] == 0 else begin[row.layer]
        end[row.layer] = number + 1
    count = sum(row.quantized for row in rows)
    return QuantizedChunks(
        table=torch.tensor(table, dtype=torch.int64, device="cpu").view(-1, 6).to(device),
        layer_start=torch.tensor(starts, dtype=torch.int64, device="cpu").to(device),
        quantized=count,
        begin=torch.tensor(begin, dtype=torch.int32, device="cpu").to(device),
        end=torch.tensor(end, dtype=torch.int32, device="cpu").to(device),
        aligned=(
            all(row[1] % 4 == 0 for row in table[:count]),
            all(row[1] % 4 == 0 and row[5] % 4 == 0 for row in table[count:]),
        ),
    )


@dataclass(frozen=True)
class Addresses:
    """Of one tensor in each place, or none."""

    table: Tensor
    """[places] int64."""
    aligned: bool
    """Whether all begin at a multiple of four elements' size."""


@dataclass(frozen=True)
class MomentAddresses:
    """Of one kind of moment, for each local tensor."""

    codes: Addresses
    scales: Addresses
    small: Addresses


def addresses(layout: Layout, name: str, tensors: Sequence[Tensor | None], device: torch.device) -> Addresses:
    """Brought to the device only where a tensor has moved since the last step."""
    begin = [0 if t is None else t.data_ptr() for t in tensors] or [0]
    table = constant(layout, f"addresses of {name}", begin, torch.int64, device)
    key = ("aligned", name, device)
    known = layout.cache.get(key)
    if known is None or known[0] is not table:
        sizes = {t.element_size() for t in tensors if t is not None}
        aligned = all(address % (4 * size) == 0 for address in begin for size in sizes)
        known = layout.cache[key] = (table, Addresses(table, aligned))
    result: Addresses = known[1]
    return result


def moment_addresses(layout: Layout, name: str, moment: StoredMoment, device: torch.device) -> MomentAddresses:
    """A moment's, looked at for dtypes and sizes where one of its tensors is another than at the last step.

    Raises:
        ValueError: for a state that is not this optimizer's.
    """
    key = ("moment", name, device)
    known = layout.cache.get(key)
    found = _marks(moment)
    if known is None or known[0] != found:
        moment = moment.checked()
        parts = {
            "codes": [t if _is_quantized(t) else None for t in moment.values],
            "scales": moment.scales,
            "small": [s if _is_quantized(t) else t for t, s in zip(moment.values, moment.small, strict=True)],
        }
        tables = MomentAddresses(**{k: addresses(layout, f"{name} {k}", v, device) for k, v in parts.items()})
        known = (_marks(moment), tables)
        if not is_capturing(device):
            layout.cache[key] = known
    result: MomentAddresses = known[1]
    return result


def _is_quantized(t: Tensor | None) -> bool:
    return t is not None and t.dtype == torch.uint8


def _marks(moment: StoredMoment) -> list[tuple[object, ...]]:
    """What tells whether a tensor is the one that was looked at."""
    return [
        () if t is None else (t.data_ptr(), t.numel(), t.dtype, t.is_contiguous())
        for tensors in (moment.values, moment.scales, moment.small)
        for t in tensors
    ]
