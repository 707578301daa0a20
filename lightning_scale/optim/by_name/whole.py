"""From pieces of a layer's state, from all ranks, to its whole state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_scale.optim.by_name.pieces import Piece
from lightning_scale.optim.by_name.scales import from_pieces


def whole(name: str, shape: Sequence[int], parts: Sequence[Piece]) -> dict[str, Tensor]:
    """A layer's whole state, as an unsharded run keeps it; see the package on blocks that were cut.

    Args:
        name: The layer's, for errors.
        shape: Its shape.
        parts: Of all ranks, in any order; those of replicas may be there more than once.

    Raises:
        ValueError: where elements are missing, or ranks disagree on what state there is.
    """
    ordered = _tiling(name, torch.Size(shape).numel(), parts)
    first = ordered[0]
    if any((p.values.keys(), p.scales.keys()) != (first.values.keys(), first.scales.keys()) for p in ordered):
        raise ValueError(f"the ranks keep other kinds of state of {name!r}: {[sorted(p.values) for p in ordered]}.")
    state = dict(first.numbers)
    for key in first.values:
        state[key] = torch.cat([p.values[key] for p in ordered]).view(tuple(shape))
        if key in first.scales:
            runs = from_pieces([(p.start, p.length) for p in ordered], [p.scales[key] for p in ordered])
            state |= runs.entries(key)
    return state


def _tiling(name: str, numel: int, parts: Sequence[Piece]) -> list[Piece]:
    """Each place once, in order."""
    if numel == 0:
        return list(parts[:1]) or _missing(name, 0, numel)
    by_start = {p.start: p for p in parts if p.length}
    ordered = [by_start[start] for start in sorted(by_start)]
    here = 0
    for p in ordered:
        if p.start != here:
            break
        here += p.length
    return ordered if here == numel and sum(p.length for p in ordered) == numel else _missing(name, here, numel)


def _missing(name: str, here: int, numel: int) -> list[Piece]:
    raise ValueError(f"the ranks' shares of {name!r} do not follow one another from element {here} of {numel} on.")
