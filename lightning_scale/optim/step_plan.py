"""What a step needs that seldom changes: which parameters are stepped together, and where their elements live."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import TrustRatio, Way
from lightning_scale.optim.backends.device import constant
from lightning_scale.optim.dtensor import check_gradient, is_sharded, like, local, sharded_layout, sharding
from lightning_scale.optim.groups import names_of
from lightning_scale.optim.layout import Layout, whole_layout
from lightning_scale.optim.state.moments import of_blocks

InitState = Callable[[dict[str, Any], Tensor, Layout], dict[str, Tensor]]

_DECIDE = ("eps", "momentum", "trust_norm")
"""Options of a group that the choice of a way may depend on."""


@dataclass
class Gathered:
    """Parallel lists for the parameters of one group, device and compute dtype that have a gradient."""

    group: dict[str, Any]
    names: tuple[str, ...]
    layout: Layout
    way: Way
    params: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Tensor]]
    norms: Tensor | None = None
    """[2, L] float64 ‖w‖ and ‖g‖, where a look at the gradients has found both."""

    def state(self, key: str) -> list[Tensor]:
        """One kind of state of every parameter; empty where the group keeps none of that kind."""
        return [state[key] for state in self.states if key in state]

    def common(self) -> dict[str, Any]:
        """The fields that every bucket has."""
        like, lr = self.weights[0], self.group["lr"]
        return {
            "layout": self.layout,
            "params": self.params,
            "weights": self.weights,
            "grads": self.grads,
            "lr": lr.to(like.device, compute_dtype(like)) if isinstance(lr, Tensor) else lr,
            "weight_decay": self.decays(),
            "trust": self.trust(),
            "way": self.way,
            "maximize": self.group["maximize"],
        }

    def decays(self) -> list[float]:
        """The weight decay of each layer."""
        one, more = (
            float(self.group["weight_decay"]) if self.group["decay_1d"] else 0.0,
            float(self.group["weight_decay"]),
        )
        return self._by_dimensions("decay", one, more)

    def trust(self) -> TrustRatio:
        """How the layers' ratios are made."""
        return TrustRatio(
            adapt=constant(self.layout, "adapt", self.adapts(), torch.bool, self.weights[0].device),
            weight_norm_clip=self.group["weight_norm_clip"],
            clip=self.group["trust_ratio_clip"],
        )

    def adapts(self) -> list[bool]:
        """Of each layer: whether it takes a ratio of its own."""
        own = self.group["layer_adaptation"]
        one, more = (not self.group["exclude_1d"], True) if own is None else (bool(own), bool(own))
        found: list[bool] = self._by_dimensions("adapts", one, more)
        return found

    def _by_dimensions(self, name: str, one: Any, more: Any) -> list[Any]:
        """Of each layer: ``one`` for at most one dimension, else ``more``."""
        known = self.layout.cache.get(name)
        if known is None or known[0] != (one, more):
            values = [more if layer.ndim > 1 else one for layer in self.layout.layers]
            known = self.layout.cache[name] = ((one, more), values)
        found: list[Any] = known[1]
        return found


def gather(
    group: dict[str, Any],
    number: int,
    state: MutableMapping[Tensor, dict[str, Tensor]],
    init_state: InitState,
    sorting: Sorting,
    way_of: WayOf,
    convert: bool = True,
) -> list[Gathered]:
    """The buckets of one parameter group; state is made for parameters that have none.

    Args:
        group: The group.
        number: Its place, for the names of unnamed parameters.
        state: The optimizer's state.
        init_state: Makes a new parameter's state from the group, what the step is computed on, and where its layers lie.
        sorting: What was found out about the groups before.
        way_of: How a parameter's step is taken.
        convert: Give the plain way weights and gradients in compute dtype, the gradients negated where the step goes
            uphill; ``False``: as they are, as all other ways get them.
    """
    params = group["params"]
    names = names_of(group, number)
    masters = [p.grad is not None and _master(group, state[p], p) for p in params]
    return [
        _filled(group, params, members, state, init_state, convert)
        for members in sorting.members(
            number, params, names, masters, way_of, tuple(group.get(name) for name in _DECIDE)
        )
    ]


def _master(group: dict[str, Any], own: dict[str, Tensor], p: Tensor) -> bool:
    """Whether there is a float32 copy, which is made where it is wanted."""
    if group["master_weights"] and p.dtype != compute_dtype(p) and "master" not in own:
        own["master"] = p.detach().to(compute_dtype(p), copy=True)
    return "master" in own


def _filled(
    group: dict[str, Any],
    all_params: list[Tensor],
    members: Members,
    state: MutableMapping[Tensor, dict[str, Tensor]],
    init_state: InitState,
    convert: bool,
) -> Gathered:
    plain = members.way is Way.PLAIN
    in_order = not convert or members.way is Way.COMPILED  # 8-bit moments are row-major: all else must be, too
    wholes = [all_params[i] for i in members.places]
    kept = [state[p] for p in wholes]
    params = [local(p) for p in wholes]
    grads = [local(p.grad) for p in wholes if p.grad is not None]  # all of them, that is
    for i, (whole, p, own) in enumerate(zip(wholes, params, kept, strict=True)):
        if not own or (len(own) == 1 and "master" in own):
            new = init_state(group, local(own.get("master", p)), members.layout.part(i))
            own.update({key: like(whole, t) if _of_elements(t, p, key) else t for key, t in new.items()})
    if not plain:  # these go through memory
        lying = _row_major if in_order else _lying_as
        grads = [lying(p, g) for p, g in zip(params, grads, strict=True)]
        if members.way is Way.COMPILED or not in_order:
            for whole, p, own in zip(wholes, params, kept, strict=True):
                for key, value in own.items():
                    if (there := lying(p, local(value))) is not local(value):
                        own[key] = like(whole, there) if is_sharded(value) else there
    states = [{key: local(t) for key, t in own.items()} for own in kept] if is_sharded(wholes[0]) else kept
    weights = [own.get("master", p) for own, p in zip(states, params, strict=True)]
    if convert and plain:
        weights = [w if w.dtype == compute_dtype(w) else w.detach().to(compute_dtype(w)) for w in weights]
        grads = [g.to(w.dtype) for g, w in zip(grads, weights, strict=True)]
        grads = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    return Gathered(group, members.names, members.layout, members.way, params, weights, grads, states)


def _of_elements(t: Tensor, p: Tensor, key: str) -> bool:
    """Whether a state tensor has an element for each of a local tensor's; scales may be as many by chance."""
    return t.shape == p.shape and not of_blocks(key)


def _row_major(p: Tensor, t: Tensor) -> Tensor:
    """A tensor whose elements lie in order: itself, or a copy."""
    return t.contiguous()


def _lying_as(p: Tensor, t: Tensor) -> Tensor:
    """A tensor of the parameter's shape with its strides: itself, or a copy; others as they are."""
    if t.stride() == p.stride() or t.shape != p.shape:
        return t
    return torch.empty_like(p, dtype=t.dtype).copy_(t)


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
