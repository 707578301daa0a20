"""Moments as they stand in ``optimizer.state`` and in checkpoints, in 8 bits or not.

Whether a layer's moment is kept in 8 bits depends on the whole layer's size alone (`EIGHT_BIT_FROM` elements and more),
never on the share of it that lies here; a float64 parameter's never is. One local tensor has these entries, where ``key`` is
"exp_avg", "exp_avg_sq" or "momentum_buffer":

=================  ==================================================================================================
key                uint8 codes in the local tensor's shape, contiguous: block after block in row-major order, whatever
                   the parameter's memory format
key_absmax         float32, 1-D: one number a block, of each run in 8 bits in order
key_small          only where a flat partition holds small layers beside large ones: the small ones' elements, in order,
                   in compute dtype, 1-D; their codes are not used
=================  ==================================================================================================

In ``state_dict()`` of sharded parameters (FSDP2) ``key_codes`` and ``key_scales`` stand in their place:
`lightning_scale.optim.state.sharded_moments`. A local tensor of small layers alone has ``key`` in compute dtype and shape, and
nothing else. ``load_state_dict`` keeps these dtypes, whatever the parameter's (`state_dict.keep_state_dtypes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_scale.optim.layout import LayerInfo, Layout, Run
from lightning_scale.optim.quantization import BLOCK, SIGNED, UNSIGNED, Code, block_count, dequantize, quantize

EIGHT_BIT_FROM = 4096

CODES: dict[str, Code] = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED, "momentum_buffer": SIGNED}


def store(target: Tensor, values: Tensor, finite: Tensor | None) -> None:
    """Write values into ``target``, rounded to its dtype; where ``finite`` holds False, every bit stays as it is."""
    values = values.to(target.dtype).view(target.shape)
    target.copy_(values if finite is None else torch.where(finite, values, target))


@dataclass(frozen=True)
class PlainMoment:
    """A run's moment, or a piece of it, in compute dtype."""

    values: Tensor
    """A view of the state: 1-D, or of a tensor that is not contiguous the whole of it, in its own shape."""

    def part(self, offset: int, length: int) -> PlainMoment:
        """Return a run of the elements."""
        return self if length == self.values.numel() else PlainMoment(self.values[offset : offset + length])

    def read(self) -> Tensor:
        """Return the numbers, 1-D; they may be the state itself, so they are not to be changed."""
        return self.values.reshape(-1)

    def write(self, values: Tensor, finite: Tensor | None) -> None:
        """Store new ones."""
        store(self.values, values, finite)


@dataclass(frozen=True)
class QuantizedMoment:
    """A run's moment, or a piece of it, in 8 bits."""

    codes: Tensor
    """The codes of the elements: uint8, 1-D, a view of the state."""
    absmax: Tensor
    """The scale of each block: float32, 1-D, a view of the state."""
    code: Code
    start: int
    """The number of the first element, counted from the layer's element 0."""

    def part(self, offset: int, length: int) -> QuantizedMoment:
        """Return some of the elements; they must start and end where a block or the whole run does."""
        if length == len(self.codes):
            return self
        start = self.start + offset
        first = start // BLOCK - self.start // BLOCK
        blocks = block_count(start, length)
        return QuantizedMoment(
            self.codes[offset : offset + length], self.absmax[first : first + blocks], self.code, start
        )

    def read(self) -> Tensor:
        """Return the numbers that the codes stand for, 1-D float32, in new memory."""
        return dequantize(self.codes, self.absmax, self.code, self.start)

    def write(self, values: Tensor, finite: Tensor | None) -> None:
        """Store new ones."""
        codes, absmax = quantize(values, self.code, self.start)
        store(self.codes, codes, finite)
        store(self.absmax, absmax, finite)


Moment = PlainMoment | QuantizedMoment


@dataclass(frozen=True)
class StoredMoment:
    """One kind of moment as it stands in the state, with one tensor or none for each local tensor, as Triton's take it."""

    values: list[Tensor | None]
    """The codes, or, where a local tensor holds small layers alone, their elements in compute dtype."""
    scales: list[Tensor | None]
    """The scale (absmax) of each block."""
    small: list[Tensor | None]
    """The elements of small layers that lie beside large ones."""
    quantized: Callable[[LayerInfo], bool]
    """Says whether a layer's moments are in 8 bits."""
    checked: Callable[[], StoredMoment]
    """Returns the same, laid out as it must be, and raises a ValueError where dtypes or sizes are others."""


def absmax_key(key: str) -> str:
    """Return the key that the scales of a moment's blocks stand under."""
    return f"{key}_absmax"


def of_blocks(key: str) -> bool:
    """Return whether a key of the state is one of blocks' scales."""
    return any(key == absmax_key(moment) for moment in CODES)


def small_key(key: str) -> str:
    """Return the key that a mixed partition's small layers' elements stand under."""
    return f"{key}_small"


def new_moment(
    key: str,
    weight: Tensor,
    layers: Sequence[LayerInfo],
    runs: Sequence[Run],
    eight_bit_from: float = EIGHT_BIT_FROM,
) -> dict[str, Tensor]:
    """Return the state of a moment that is zero.

    Args:
        key: The moment's key in the state.
        weight: A tensor of the local tensor's shape, device and dtype.
        layers: The layers of the layout.
        runs: The runs of the layout that lie in this local tensor.
        eight_bit_from: The number of elements from which on a layer's moment is kept in 8 bits.
    """
    compute = torch.promote_types(weight.dtype, torch.float32)
    quantized = [s for s in runs if in_eight_bits(layers[s.layer], compute, eight_bit_from)]
    # An empty share of a large layer has codes, too: none. All ranks' states must be of one kind.
    empty = not runs and len(layers) == 1 and in_eight_bits(layers[0], compute, eight_bit_from)
    if not quantized and not empty:
        return {key: torch.zeros(weight.shape, dtype=compute, device=weight.device)}
    count = sum(block_count(s.layer_start, s.length) for s in quantized)
    state = {
        key: torch.full(weight.shape, CODES[key].zero, dtype=torch.uint8, device=weight.device),
        absmax_key(key): torch.zeros(count, dtype=torch.float32, device=weight.device),
    }
    if len(quantized) < len(runs):
        small = sum(s.length for s in runs) - sum(s.length for s in quantized)
        state[small_key(key)] = torch.zeros(small, dtype=compute, device=weight.device)
    return state


def in_eight_bits(layer: LayerInfo, compute: torch.dtype, eight_bit_from: float = EIGHT_BIT_FROM) -> bool:
    """Return whether a layer's moments are kept in 8 bits."""
    return layer.numel >= eight_bit_from and compute == torch.float32 and not layer.full_precision


def moments(
    key: str,
    layout: Layout,
    states: Sequence[dict[str, Tensor]],
    compute: torch.dtype,
    eight_bit_from: float = EIGHT_BIT_FROM,
) -> list[Moment]:
    """Return one kind of moment of every run, as views of the state.

    Args:
        key: The moment's key in the state.
        layout: The layout that says where the layers' elements lie.
        states: The state of each local tensor.
        compute: The dtype that steps are computed in.
        eight_bit_from: The number of elements from which on a layer's moment is kept in 8 bits.

    Raises:
        ValueError: For a state of other dtypes or sizes, as another optimizer's state_dict has them.
    """
    found: list[Moment] = []
    blocks = [0] * len(states)  # how far each tensor's absmax and small elements have been given away
    smalls = [0] * len(states)
    for s in layout.runs:
        state, layer = states[s.tensor], layout.layers[s.layer]
        here = slice(s.tensor_start, s.tensor_start + s.length)
        if in_eight_bits(layer, compute, eight_bit_from):
            codes = _contiguous(state, key, torch.uint8, layer)[here]
            count = block_count(s.layer_start, s.length)
            absmax = _contiguous(state, absmax_key(key), torch.float32, layer)
            absmax = absmax[blocks[s.tensor] : blocks[s.tensor] + count]
            blocks[s.tensor] += count
            if len(absmax) < count or len(codes) < s.length:
                raise ValueError(
                    f"{key} of {layer.name!r} has {len(codes)} codes and {len(absmax)} scales where {s.length} and"
                    f" {count} belong: load a state_dict of the same parameters in the same layout."
                )
            found.append(QuantizedMoment(codes, absmax, CODES[key], s.layer_start))
        elif small_key(key) in state:
            small = _contiguous(state, small_key(key), compute, layer)
            found.append(PlainMoment(small[smalls[s.tensor] : smalls[s.tensor] + s.length]))
            smalls[s.tensor] += s.length
        else:
            value = _of_dtype(state, key, compute, layer)
            whole = s.length == value.numel() and not value.is_contiguous()
            found.append(PlainMoment(value if whole else _contiguous(state, key, compute, layer)[here]))
    return found


def stored_moment(
    key: str,
    layout: Layout,
    states: Sequence[dict[str, Tensor]],
    compute: torch.dtype,
    eight_bit_from: float = EIGHT_BIT_FROM,
) -> StoredMoment:
    """Return one kind of moment of whole local tensors. It takes what `moments` takes, whose errors come from its ``checked``."""

    def checked() -> StoredMoment:
        moments(key, layout, states, compute, eight_bit_from)
        return stored_moment(key, layout, states, compute, eight_bit_from)

    values, scales, small = ([state.get(name) for state in states] for name in (key, absmax_key(key), small_key(key)))
    quantized = partial(in_eight_bits, compute=compute, eight_bit_from=eight_bit_from)
    return StoredMoment(values, scales, small, quantized, checked)


def _contiguous(state: dict[str, Tensor], key: str, dtype: torch.dtype, layer: LayerInfo) -> Tensor:
    """Return a state tensor as it belongs, 1-D; what a checkpoint brought in another memory format is laid out anew."""
    value = _of_dtype(state, key, dtype, layer)
    if not value.is_contiguous():
        value = state[key] = value.contiguous()
    return value.view(-1)


def _of_dtype(state: dict[str, Tensor], key: str, dtype: torch.dtype, layer: LayerInfo) -> Tensor:
    value = state.get(key)
    if value is None or value.dtype != dtype:
        has = "missing" if value is None else f"of dtype {value.dtype}"
        raise ValueError(
            f"{key} of {layer.name!r} is {has}, and this optimizer keeps it as {dtype}: load a state_dict that the same"
            " optimizer gave."
        )
    return value
