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
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.codec import BLOCK
from lightning_scale.optim.moments import CODES, absmax_key
from lightning_scale.optim.row_scales import Rows, by_block, by_row
from lightning_scale.optim.sharding import is_sharded, like, local, rows_of


def codes_key(key: str) -> str:
    """Where a moment's codes stand."""
    return f"{key}_codes"


def scales_key(key: str) -> str:
    """Where its scales stand."""
    return f"{key}_scales"


def saved(p: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter as it is saved: as it is, unless the parameter is sharded and a moment is in 8 bits."""
    found = dict(state)
    for key in CODES:
        absmax = state.get(absmax_key(key))
        if is_sharded(p) and isinstance(absmax, Tensor):
            del found[absmax_key(key)]
            found[codes_key(key)] = found.pop(key)
            found[scales_key(key)] = like(p, by_row(absmax, rows_of(p)))
    return found


def loaded(p: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter as its steps take it, of a saved one.

    Raises:
        ValueError: for tensors of another parameter's shape.
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
    """Raises ValueError for the saved state of an 8-bit optimizer, which another would take for no state at all."""
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
    """This rank's rows of a whole parameter's codes, and their blocks' scales."""
    if is_sharded(codes) or codes.shape != p.shape:
        return codes, absmax
    rows = rows_of(p)
    first = rows.start // BLOCK
    return like(p, codes[rows.first : rows.first + rows.count]), absmax[first : first + rows.blocks]
