"""Where tensors begin, in a form that one launch can go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant, is_capturing
from lightning_scale.optim.kernels.eight_bit.work import WholeMoment
from lightning_scale.optim.layout import Layout


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


def moment_addresses(layout: Layout, name: str, moment: WholeMoment, device: torch.device) -> MomentAddresses:
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
            "codes": [t if _coded(t) else None for t in moment.values],
            "scales": moment.scales,
            "small": [s if _coded(t) else t for t, s in zip(moment.values, moment.small, strict=True)],
        }
        tables = MomentAddresses(**{k: addresses(layout, f"{name} {k}", v, device) for k, v in parts.items()})
        known = (_marks(moment), tables)
        if not is_capturing(device):
            layout.cache[key] = known
    result: MomentAddresses = known[1]
    return result


def _coded(t: Tensor | None) -> bool:
    return t is not None and t.dtype == torch.uint8


def _marks(moment: WholeMoment) -> list[tuple[object, ...]]:
    """What tells whether a tensor is the one that was looked at."""
    return [
        () if t is None else (t.data_ptr(), t.numel(), t.dtype, t.is_contiguous())
        for tensors in (moment.values, moment.scales, moment.small)
        for t in tensors
    ]
