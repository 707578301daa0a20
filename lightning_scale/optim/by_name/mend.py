"""Whole state in other forms than the package's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_scale.optim.by_name.fill import fill
from lightning_scale.optim.by_name.scales import CUT_ABSMAX, CUT_STARTS, from_rows
from lightning_scale.optim.layout import LayerInfo, Layout, Segment
from lightning_scale.optim.moments import CODES
from lightning_scale.optim.saved_moments import codes_key, scales_key


def mended(state: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's whole state with one scale a block, for a run where layers are whole; itself where it has that."""
    beside = {form.format(key) for key in CODES for form in (CUT_STARTS, CUT_ABSMAX)}
    own = {key: value for key, value in state.items() if key not in beside}
    if len(own) < len(state):
        (codes, *_) = [own[key] for key in CODES if CUT_STARTS.format(key) in state]
        layer = LayerInfo("", codes.numel(), codes.dim())
        layout = Layout((layer,), (Segment(0, 0, 0, 0, codes.numel()),), (codes.numel(),))
        own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in own.items()}
        fill(layout, own, {"": state}, eight_bit_from=0)
    return own


def by_blocks(state: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's whole state as `fill` takes it, of one whose scales are written row by row (`saved_moments`)."""
    found = dict(state)
    for key in CODES:
        codes, scales = found.pop(codes_key(key), None), found.pop(scales_key(key), None)
        if codes is not None and scales is not None:
            length = codes.numel() // max(1, len(codes))
            found |= {key: codes, **from_rows(scales, length).entries(key)}
    return found
