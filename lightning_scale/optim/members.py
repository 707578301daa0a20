"""Which parameters of a group are stepped together, and their layout: worked out once, and again where it changes."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.layout import Layout, whole_layout
from lightning_scale.optim.sharding import check_gradient, is_sharded, sharded_layout, sharding

# Of one group: models that leave out other layers at every step would fill the memory with tables.
_KEPT = 8
# Of forgotten layouts: a step's flag is set some seconds after it at the latest.
_FLAGS = 256


@dataclass(frozen=True)
class Members:
    """Parameters of one group, device and compute dtype that take their step in one way.

    Args:
        way: That way.
        places: Where they stand in the group.
        names: Of the layers whose elements they hold.
        layout: Where their elements lie, with all that kernels have worked out from it.
    """

    way: Way
    places: tuple[int, ...]
    names: tuple[str, ...]
    layout: Layout


class Sorting:
    """The members of an optimizer's groups, kept as long as the parameters and gradients are of the same kinds.

    Attributes:
        flat: Where the layers of flat tensors lie that a strategy has put in the parameters' place; they are members by
            themselves.
        all_reduce: Given to the layouts of plain parameters, which then take the steps of sharded ones.
    """

    def __init__(self) -> None:
        self.flat: dict[Tensor, Layout] = {}
        self.all_reduce: Callable[[Tensor], None] | None = None
        self._known: dict[int, OrderedDict[Hashable, list[Members]]] = {}
        self._captured: list[Layout] = []
        self._flags: deque[Layout] = deque(maxlen=_FLAGS)

    def forget(self) -> None:
        """Sort anew at the next step."""
        for kept in self._known.values():
            for members in kept.values():
                self._outlive(members)
        self._known.clear()

    def _outlive(self, forgotten: list[Members]) -> None:
        """Keep of what is forgotten what CUDA graphs read, and the flags that kernels may still set."""
        for layout in (m.layout for m in forgotten):
            if layout.captured or layout.copied_by_graphs:
                self._captured.append(layout)
            elif layout.gave_up:
                flags = replace(layout, segments=(), tensor_numels=())  # without its tables
                flags.gave_up.update(layout.gave_up)
                self._flags.append(flags)

    def members(
        self,
        number: int,
        params: Sequence[Tensor],
        names: Sequence[str],
        masters: Sequence[bool],
        way_of: WayOf,
        options: Hashable = (),
    ) -> list[Members]:
        """The members of one group that have a gradient, in the order of their first ones.

        Args:
            number: Which group.
            params: All of its parameters.
            names: Of each.
            masters: Whether each has a float32 master copy.
            way_of: How a parameter's step is taken.
            options: What else that depends on.

        Raises:
            ValueError: for a parameter or gradient that no kernel takes.
        """
        # Strategies with flat tensors step one of them at a time, each time as the first group.
        known = self._known.setdefault(id(params[0]) if self._is_flat(params) else number, OrderedDict())
        key = (options, tuple(names), tuple(_kind(p, master) for p, master in zip(params, masters, strict=True)))
        if key not in known:
            known[key] = self._sorted(params, names, masters, way_of)
            if len(known) > _KEPT:
                self._outlive(known.popitem(last=False)[1])
        known.move_to_end(key)
        return known[key]

    def layouts(self) -> Iterator[Layout]:
        """Of all members that are kept, and those whose flags are."""
        yield from (*self._captured, *self._flags)
        for kept in self._known.values():
            for members in kept.values():
                yield from (m.layout for m in members)

    def layout_of(self, p: Tensor) -> Layout:
        """Where one parameter's elements lie, without its name; or the layers of a flat tensor."""
        return self._layout([""], [p])

    def _is_flat(self, params: Sequence[Tensor]) -> bool:
        return bool(self.flat) and len(params) > 0 and params[0] in self.flat

    def _layout(self, names: list[str], params: list[Tensor]) -> Layout:
        if self._is_flat(params):
            return self.flat[params[0]]
        if is_sharded(params[0]):
            return sharded_layout(names, params)
        layout = whole_layout(names, params)
        return layout if self.all_reduce is None else replace(layout, all_reduce=self.all_reduce)

    def _sorted(
        self, params: Sequence[Tensor], names: Sequence[str], masters: Sequence[bool], way_of: WayOf
    ) -> list[Members]:
        together: dict[tuple[Any, ...], list[int]] = {}
        for place, (p, master) in enumerate(zip(params, masters, strict=True)):
            if p.grad is None:
                continue
            refuse_unsupported(p)
            check_gradient(names[place], p)
            way = way_of(p)
            # Kernels that take tensors as they are want one type each.
            types = () if way is Way.PLAIN else (p.dtype, p.grad.dtype, master)
            alone = place if self._is_flat([p]) else None
            key = (way, p.device, compute_dtype(p), sharding(p), alone, *types)
            together.setdefault(key, []).append(place)
        found = []
        for key, places in together.items():
            layout = self._layout([names[i] for i in places], [params[i] for i in places])
            found.append(Members(key[0], tuple(places), tuple(layer.name for layer in layout.layers), layout))
        return found


WayOf = Callable[[Tensor], Way]


def _kind(p: Tensor, master: bool) -> Hashable:
    grad = p.grad
    if grad is None:
        return None
    return id(p), p.dtype, p.device, p.shape, p.stride(), grad.dtype, grad.layout, master, sharding(grad)


def refuse_unsupported(p: Tensor) -> None:
    """Raises ValueError for a parameter or gradient that the kernels do not take."""
    if p.is_complex():
        raise ValueError("complex parameters are not supported: give torch.view_as_real() of them.")
    if p.layout != torch.strided or (p.grad is not None and p.grad.layout != torch.strided):
        raise ValueError("sparse parameters and gradients are not supported: build the layer with sparse=False.")


def compute_dtype(t: Tensor) -> torch.dtype:
    """What steps are computed in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32
