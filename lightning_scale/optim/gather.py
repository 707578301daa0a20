"""From a parameter group to buckets: tensors of one device and compute dtype, in the form the kernels take."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.kernels.constants import constant
from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.kernels.work import TrustRatio
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.members import Members, Sorting, WayOf, compute_dtype
from lightning_scale.optim.moments import of_blocks
from lightning_scale.optim.names import names_of
from lightning_scale.optim.sharding import is_sharded, like, local

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
