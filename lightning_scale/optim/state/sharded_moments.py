"""8-bit moments of sharded parameters (FSDP2) in ``state_dict()``, so that any number of ranks can load them.

==========  =========================================================================================================
key_codes   uint8 codes, of the parameter's shape and sharding
key_scales  float32 [rows, `row_scales.columns`], sharded as the parameter's rows: the scales of the blocks that each
            row touches
==========  =========================================================================================================

On as many ranks as before, the same bits come back. On others a block that a shard's edge had cut, and cuts no longer, is
read and rounded anew with one scale; all others keep their bits, and so does a block that is cut now. Whole tensors, as
consolidated files have them, load into plain parameters as well, and plain parameters' into sharded ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.dtensor import is_sharded, like, local, share
from lightning_scale.optim.quantization import BLOCK, Code, block_count, with_one_scale
from lightning_scale.optim.state.moments import CODES, absmax_key


def codes_key(key: str) -> str:
    """Return the key that a moment's codes stand under in a saved state."""
    return f"{key}_codes"


def scales_key(key: str) -> str:
    """Return the key that a moment's scales stand under in a saved state."""
    return f"{key}_scales"


def saved(p: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one parameter in the form that is saved: another one where it is sharded and a moment is in 8 bits."""
    found = dict(state)
    for key in CODES:
        absmax = state.get(absmax_key(key))
        if is_sharded(p) and isinstance(absmax, Tensor):
            del found[absmax_key(key)]
            found[codes_key(key)] = found.pop(key)
            found[scales_key(key)] = like(p, by_row(absmax, rows_of(p)))
    return found


def loaded(p: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of one parameter in the form that its steps take, from a saved one.

    Raises:
        ValueError: For tensors of another parameter's shape.
    """
    found = dict(state)
    for key, code in CODES.items():
        codes, scales = found.pop(codes_key(key), None), found.pop(scales_key(key), None)
        if key in found:  # a plain parameter's, or another optimizer's; the codes beside it are what was here before
            if is_sharded(p) and isinstance(found.get(absmax_key(key)), Tensor):
                found[key], found[absmax_key(key)] = _share(p, found[key], found[absmax_key(key)])
        elif codes is not None and scales is not None:
            rows, own, by_rows = rows_of(p), local(codes), local(scales)
            _check(p, own, by_rows, rows)
            flat, absmax = by_block(by_rows, own.contiguous().view(-1), rows, code)
            found[key] = like(p, flat.view(own.shape))
            found[absmax_key(key)] = absmax
    return found


def refuse_codes(name: str, p: Tensor, state: Mapping[str, Any]) -> None:
    """Raise a ValueError for the saved state of an 8-bit optimizer, which another would take for no state at all."""
    if any(codes_key(key) in state for key in CODES):
        raise ValueError(
            f"the state of a parameter of shape {tuple(p.shape)} in this state_dict is in 8 bits, and {name} keeps it in full"
            f" precision: load it into the 8-bit optimizer that gave it."
        )


def _check(p: Tensor, codes: Tensor, scales: Tensor, rows: Rows) -> None:
    if codes.shape != local(p).shape or codes.dtype != torch.uint8 or scales.shape[:1] != codes.shape[:1]:
        raise ValueError(
            f"the codes of a parameter of shape {tuple(p.shape)} have shape {tuple(codes.shape)} on this rank, where"
            f" {rows.count} rows belong: load a state_dict that the same kind of optimizer gave for the same parameters."
        )


def _share(p: Tensor, codes: Tensor, absmax: Tensor) -> tuple[Tensor, Tensor]:
    """Return this rank's rows of a whole parameter's codes, and the scales of their blocks."""
    if is_sharded(codes) or codes.shape != p.shape:
        return codes, absmax
    rows = rows_of(p)
    first = rows.start // BLOCK
    return like(p, codes[rows.first : rows.first + rows.count]), absmax[first : first + rows.blocks]


@dataclass(frozen=True)
class Rows:
    """A run of whole rows of a parameter.

    Args:
        first: The number of the first row.
        count: How many rows there are.
        length: How many elements a row has, 1 or more.
    """

    first: int
    count: int
    length: int

    @property
    def start(self) -> int:
        """The number of the first element, counted from the parameter's element 0."""
        return self.first * self.length

    @property
    def blocks(self) -> int:
        """How many blocks, or parts of blocks, the rows have."""
        return block_count(self.start, self.count * self.length)


def rows_of(p: Tensor) -> Rows:
    """Return the rows of a parameter that lie on this rank. It has elements, and one dimension or more."""
    length = p.numel() // p.shape[0]
    if not is_sharded(p):
        return Rows(0, p.shape[0], length)
    start, count = share("", p)
    return Rows(start // length, count // length, length)


def columns(length: int) -> int:
    """Return how many blocks a row of ``length`` elements touches at most, wherever rows begin in the grid."""
    return -(-(BLOCK - gcd(length, BLOCK) + length) // BLOCK)


def by_row(absmax: Tensor, rows: Rows) -> Tensor:
    """Write the scales of a share's blocks, 1-D, row by row: [rows, columns]."""
    if not rows.count:
        return absmax.new_zeros(0, columns(rows.length))
    block, touched = _touched(rows, absmax.device)
    return torch.where(touched, absmax[block.clamp(max=rows.blocks - 1)], 0.0)


def by_block(scales: Tensor, codes: Tensor, rows: Rows, code: Code) -> tuple[Tensor, Tensor]:
    """Return the codes and the scales of a share's blocks, whatever the shares were that its rows come from.

    Where the rows of a block have one scale, which they do unless another share ended there, codes and scale are as they
    were. Else the block's numbers are read, and rounded anew with one scale.

    Args:
        scales: The scales row by row, [rows, columns] float32.
        codes: The codes of all the rows' elements, uint8, 1-D.
        rows: The rows that the share has.
        code: The code that the moment is kept in.

    Returns:
        The codes (the same tensor where none changed) and the scales.
    """
    if not rows.count:
        return codes, scales.new_zeros(0)
    block, touched = _touched(rows, scales.device)
    block, parts = block[touched], scales[touched]
    absmax = scales.new_zeros(rows.blocks).scatter_reduce_(0, block, parts, "amax")
    least = torch.full_like(absmax, torch.inf).scatter_reduce_(0, block, parts, "amin")
    joined = (least < absmax).nonzero().flatten().tolist()
    if joined:
        codes = codes.clone()
    for number in joined:
        begin = max(0, number * BLOCK - rows.start % BLOCK)
        end = min(len(codes), (number + 1) * BLOCK - rows.start % BLOCK)
        element = torch.arange(rows.start + begin, rows.start + end, device=scales.device)
        row = element // rows.length
        own = scales[row - rows.first, element // BLOCK - row * rows.length // BLOCK]
        codes[begin:end], absmax[number : number + 1] = with_one_scale(codes[begin:end], own, code, rows.start + begin)
    return codes, absmax


def _touched(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which of the share's blocks stands where in [rows, columns], and whether its row touches it."""
    start = torch.arange(rows.first, rows.first + rows.count, device=device) * rows.length
    block = (start // BLOCK)[:, None] + torch.arange(columns(rows.length), device=device)
    touched = block <= ((start + rows.length - 1) // BLOCK)[:, None]
    return block - rows.start // BLOCK, touched
