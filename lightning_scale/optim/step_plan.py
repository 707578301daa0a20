"""What a step needs that seldom changes: which parameters are stepped together, and where their elements live."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Addresses, Backend, Bucket, Scratch, addresses
from lightning_scale.optim.dtensor import (
    check_gradient,
    is_sharded,
    like,
    local,
    locals_of,
    sharded_alike,
    sharded_layout,
    sharding,
)
from lightning_scale.optim.groups import names_of
from lightning_scale.optim.layout import LayerInfo, Layout, whole_layout
from lightning_scale.optim.state.foreign import from_eight_bits_of, in_eight_bits_of
from lightning_scale.optim.state.moments import CODES, absmax_key, in_eight_bits, of_blocks

InitState = Callable[[dict[str, Any], Tensor, Layout], dict[str, Tensor]]
BackendOf = Callable[[Tensor], Backend]

# Of one group: models that leave out other layers at every step would fill the memory with tables.
_KEPT = 8
# Of forgotten layouts: a step's flag is set some seconds after it at the latest.
_FLAGS = 256


@dataclass(frozen=True)
class BucketPlan:
    """Parameters of one group, device and dtype whose step one backend takes.

    Args:
        backend: The backend that takes their step.
        places: Where the parameters stand in the group.
        names: The names of the layers whose elements they hold.
        layout: Where those elements lie, with everything that backends have worked out from it.
    """

    backend: Backend
    places: tuple[int, ...]
    names: tuple[str, ...]
    layout: Layout


class StepPlan:
    """Sorts an optimizer's parameters into buckets, and remembers how as long as parameters and gradients are of the same kinds.

    Args:
        in_order: Whether moments lie in row-major order, whatever the parameters' memory format.
        eight_bit_from: The number of elements from which on a layer's moments are kept in 8 bits.
        full_precision: Patterns of the names of parameters whose moments are not, whatever their size.

    Attributes:
        flat: The layouts of the flat tensors that a strategy has put in the parameters' place. Each is a bucket by itself, or
            the pieces of it together, which have one layout.
        all_reduce: A sum over ranks that plain parameters' layouts are given, so that they take the steps of sharded ones.
    """

    def __init__(self, in_order: bool, eight_bit_from: float, full_precision: Sequence[str] = ()) -> None:
        self.flat: dict[Tensor, Layout] = {}
        self.all_reduce: Callable[[Tensor], None] | None = None
        self._in_order = in_order
        self._eight_bit_from = eight_bit_from
        self._full_precision = full_precision
        self._scratch = Scratch()
        self._known: dict[int, dict[Hashable, list[BucketPlan]]] = {}
        self._last: dict[int, _LastStep] = {}
        self._fused: bool | None = None
        self._captured: list[Layout] = []
        self._flags: deque[Layout] = deque(maxlen=_FLAGS)

    def buckets(
        self,
        group: dict[str, Any],
        number: int,
        state: MutableMapping[Tensor, dict[str, Tensor]],
        init_state: InitState,
        backend_of: BackendOf,
        fused: bool | None,
    ) -> list[Bucket]:
        """Return the buckets of one parameter group, and make the state of parameters that have none.

        Args:
            group: The parameter group.
            number: The place of the group, for the names of unnamed parameters.
            state: The state of all of the optimizer's parameters.
            init_state: Makes a new parameter's state from the group, what the step is computed on, and where its layers lie.
            backend_of: Says which backend takes a parameter's step.
            fused: The optimizer's option of that name; where it changes, everything is sorted anew.
        """
        params = group["params"]
        if fused != self._fused:
            self.forget()
            self._fused = fused
        slot = id(params[0]) if self._is_flat(params) else number
        grads = list(map(_grad, params))
        last, flat = self._last.get(slot), self._flat_layout(params)
        if last is not None and last.flat is flat and (again := last.again(group, grads, state)) is not None:
            return again
        masters = [g is not None and _master(group, state, p) for p, g in zip(params, grads, strict=True)]
        members = self.members(slot, number, group, masters, backend_of)
        buckets = [self._bucket(group, [params[i] for i in of.places], of, state, init_state) for of in members]
        self._last[slot] = _LastStep(group, grads, members, buckets, state, flat)
        return buckets

    def _bucket(
        self,
        group: dict[str, Any],
        wholes: list[Tensor],
        members: BucketPlan,
        state: MutableMapping[Tensor, dict[str, Tensor]],
        init_state: InitState,
    ) -> Bucket:
        kept = [state[p] for p in wholes]
        sharded = is_sharded(wholes[0])
        params = locals_of(wholes) if sharded else wholes
        grads = [p.grad for p in wholes if p.grad is not None]  # all of them, that is
        grads = locals_of(grads) if sharded else grads
        for i, (whole, p, own) in enumerate(zip(wholes, params, kept, strict=True)):
            if not self.is_flat(whole):
                self._follow_dtype(whole, own, members.layout.layers[i])
            if not own or (len(own) == 1 and "master" in own):
                new = init_state(group, local(own.get("master", p)), members.layout.part(i))
                own.update({key: like(whole, t) if _of_elements(t, p, key) else t for key, t in new.items()})
        if members.backend is not Backend.REFERENCE:  # these go through memory
            lying = _row_major if self._in_order else _lying_as
            grads = [lying(p, g) for p, g in zip(params, grads, strict=True)]
            if not self._in_order:
                for whole, p, own in zip(wholes, params, kept, strict=True):
                    for key, value in own.items():
                        if (there := lying(p, local(value))) is not local(value):
                            own[key] = like(whole, there) if is_sharded(value) else there
        states = [{key: local(t) for key, t in own.items()} for own in kept] if sharded else kept
        weights = [own.get("master", p) for own, p in zip(states, params, strict=True)]
        return Bucket(
            group,
            members.names,
            members.layout,
            members.backend,
            params,
            weights,
            grads,
            states,
            self._in_order,
            self._eight_bit_from,
            self._scratch,
        )

    def _follow_dtype(self, p: Tensor, own: dict[str, Tensor], layer: LayerInfo) -> None:
        """Bring moments to the dtype that a parameter's steps are computed in, after ``model.double()`` or ``model.float()``."""
        compute = compute_dtype(own.get("master", p))
        for key in CODES:
            value, coded = own.get(key), absmax_key(key) in own
            if value is None or (
                compute == torch.float32 if coded else value.dtype == compute or not value.is_floating_point()
            ):
                continue
            if coded:
                value = from_eight_bits_of(p, key, own)
                del own[absmax_key(key)]
            if in_eight_bits(layer, compute, self._eight_bit_from):
                own[key], own[absmax_key(key)] = in_eight_bits_of(p, key, value)
            else:
                own[key] = value.to(compute)

    def forget(self) -> None:
        """Forget how parameters were sorted, so that the next step sorts them anew."""
        for kept in self._known.values():
            for members in kept.values():
                self._outlive(members)
        self._known.clear()
        self._last.clear()

    def _outlive(self, forgotten: list[BucketPlan]) -> None:
        """Keep what CUDA graphs read of what is forgotten, and the flags that kernels may still set."""
        for layout in (m.layout for m in forgotten):
            if layout.captured or layout.copied_by_graphs:
                self._captured.append(layout)
            elif layout.gave_up:
                flags = replace(layout, runs=(), tensor_numels=())  # without its tables
                flags.gave_up.update(layout.gave_up)
                self._flags.append(flags)

    def members(
        self, slot: int, number: int, group: dict[str, Any], masters: Sequence[bool], backend_of: BackendOf
    ) -> list[BucketPlan]:
        """Return how the parameters of one group that have a gradient are put together, in the order of their first ones.

        Args:
            slot: The key that they are remembered under. Strategies with flat tensors step one of them at a time, each time as
                the first group, so the number of the group would not tell them apart.
            number: The place of the group, for the names of unnamed parameters.
            group: The parameter group.
            masters: Whether each of its parameters has a float32 master copy.
            backend_of: Says which backend takes a parameter's step.

        Raises:
            ValueError: For a parameter or gradient that no backend takes.
        """
        params = group["params"]
        known = self._known.setdefault(slot, {})
        names = group.get("param_names")
        flat = self._flat_layout(params)  # of the same pieces there may be another
        key = (
            names and tuple(names),
            id(flat),
            tuple([_kind(p, master) for p, master in zip(params, masters, strict=True)]),
        )
        found = known.pop(key, None) or self._sorted(
            params, names_of(group, number) if flat is None else [""] * len(params), masters, backend_of
        )
        known[key] = found  # the last one now
        if len(known) > _KEPT:
            self._outlive(known.pop(next(iter(known))))
        return found

    def layouts(self) -> Iterator[Layout]:
        """Go through the layouts of everything that is remembered, and those whose flags are kept."""
        yield from (*self._captured, *self._flags)
        for kept in self._known.values():
            for members in kept.values():
                yield from (m.layout for m in members)

    def layout_of(self, p: Tensor, name: str = "") -> Layout:
        """Return where one parameter's elements lie, or where the layers of a flat tensor do."""
        return self._layout([name], [p])

    def is_flat(self, p: Tensor) -> bool:
        """Return whether a strategy has put a tensor in the place of parameters."""
        return bool(self.flat) and p in self.flat

    def _is_flat(self, params: Sequence[Tensor]) -> bool:
        return len(params) > 0 and self.is_flat(params[0])

    def _flat_layout(self, params: Sequence[Tensor]) -> Layout | None:
        return self.flat[params[0]] if self._is_flat(params) else None

    def _layout(self, names: list[str], params: list[Tensor]) -> Layout:
        if self._is_flat(params):
            return self.flat[params[0]]
        if is_sharded(params[0]):
            return sharded_layout(names, params, self._full_precision)
        layout = whole_layout(names, params, self._full_precision)
        return layout if self.all_reduce is None else replace(layout, all_reduce=self.all_reduce)

    def _sorted(
        self, params: Sequence[Tensor], names: Sequence[str], masters: Sequence[bool], backend_of: BackendOf
    ) -> list[BucketPlan]:
        together: dict[tuple[Any, ...], list[int]] = {}
        for place, (p, master) in enumerate(zip(params, masters, strict=True)):
            if p.grad is None:
                continue
            refuse_unsupported(p)
            check_gradient(names[place], p)
            backend = backend_of(p)
            # Kernels want one type each.
            types = () if backend is Backend.REFERENCE else (p.dtype, p.grad.dtype, master)
            alone = id(self.flat[p]) if self._is_flat([p]) else None
            key = (backend, p.device, compute_dtype(p), sharding(p), alone, *types)
            together.setdefault(key, []).append(place)
        found = []
        for key, places in together.items():
            layout = self._layout([names[i] for i in places], [params[i] for i in places])
            found.append(BucketPlan(key[0], tuple(places), tuple(layer.name for layer in layout.layers), layout))
        return found


class _LastStep:
    """A group's buckets of the last step, and what tells whether the next one's are the same but for the gradients.

    To look takes about a microsecond a parameter: tensors are compared by their addresses, gathered in C.
    """

    def __init__(
        self,
        group: dict[str, Any],
        grads: Sequence[Tensor | None],
        members: Sequence[BucketPlan],
        buckets: Sequence[Bucket],
        state: MutableMapping[Tensor, dict[str, Tensor]],
        flat: Layout | None,
    ) -> None:
        self.flat = flat
        self._group, self._masters = group, group["master_weights"]
        self._params = list(group["params"])
        self._names = group.get("param_names")
        self._without = [g is None for g in grads]
        # Without the gradients: they would not be freed when the next window begins.
        self._members, self._buckets = members, [replace(b, grads=[], norms=None, at={}) for b in buckets]
        self._gradients = [b.grads[0].dtype for b in buckets]
        self._states = [[state[self._params[i]] for i in of.places] for of in members]
        self._simple = all(map(self._is_simple, buckets))
        self._wholes = [[self._params[i] for i in of.places] for of in members]
        self._sharded = [is_sharded(wholes[0]) for wholes in self._wholes]
        each = zip(self._wholes, self._states, self._sharded, strict=True)
        self._memory = [self._memory_of(*of) for of in each] if self._simple else []
        self._addresses = [self._addresses_of(bucket) for bucket in buckets if self._simple]

    @staticmethod
    def _is_simple(bucket: Bucket) -> bool:
        """Return whether all of a bucket's tensors lie in order, and all of its state was made."""
        tensors = (*bucket.params, *bucket.weights, *(t for own in bucket.states for t in own.values()))
        return (
            bucket.backend is not Backend.REFERENCE and all(bucket.states) and all(map(Tensor.is_contiguous, tensors))
        )

    @staticmethod
    def _memory_of(
        wholes: Sequence[Tensor], states: Sequence[dict[str, Tensor]], sharded: bool
    ) -> tuple[list[str], list[int], list[int]]:
        """Return what the kinds of state are called, which tensors they and the parameters are, and where each begins."""
        tensors = [*wholes, *chain.from_iterable(map(dict.values, states))]
        own = locals_of(tensors) if sharded else tensors
        return [*chain.from_iterable(states)], list(map(id, tensors)), list(map(Tensor.data_ptr, own))

    @staticmethod
    def _addresses_of(bucket: Bucket) -> dict[str, Addresses]:
        """Return the addresses of parameters, weights and each kind of state, an array each; 0 stands where there is none."""
        params = addresses(bucket.params)
        found = {
            "params": params,
            "weights": params if bucket.weights[0] is bucket.params[0] else addresses(bucket.weights),
        }
        for key in dict.fromkeys(chain.from_iterable(bucket.states)):
            found[key] = addresses([own.get(key) for own in bucket.states])
        return found

    def again(
        self, group: dict[str, Any], grads: Sequence[Tensor | None], state: MutableMapping[Tensor, dict[str, Tensor]]
    ) -> list[Bucket] | None:
        """Return the buckets of this step, or None where anything but the gradients is another than at the last one."""
        if not (
            self._simple
            and group["master_weights"] == self._masters
            and group.get("param_names") is self._names
            and len(group["params"]) == len(self._params)
            and all(map(operator.is_, group["params"], self._params))
            and [g is None for g in grads] == self._without
        ):
            return None
        found = []
        each = zip(
            self._members,
            self._buckets,
            self._gradients,
            self._wholes,
            self._states,
            self._sharded,
            self._memory,
            self._addresses,
            strict=True,
        )
        for members, bucket, dtype, wholes, states, sharded, memory, known in each:
            its = [g for i in members.places if (g := grads[i]) is not None]
            if sharded:
                if not sharded_alike(its, wholes):
                    return None
                its = locals_of(its)
            if not (
                all(map(operator.is_, [state[p] for p in wholes], states))
                and self._memory_of(wholes, states, sharded) == memory
                and set(map(_dtype, its)) == {dtype}
                and set(map(_layout, its)) == {torch.strided}
                and all(map(Tensor.is_contiguous, its))
                and all(map(Tensor.is_contiguous, bucket.params))
            ):
                return None
            own = replace(bucket, group=group, grads=its, norms=None, at={**known, "grads": addresses(its)})
            own.remembers, own.quantized = bucket.remembers, bucket.quantized
            found.append(own)
        return found


_grad, _dtype, _layout = map(operator.attrgetter, ("grad", "dtype", "layout"))


def _kind(p: Tensor, master: bool) -> Hashable:
    grad = p.grad
    if grad is None:
        return None
    return id(p), p.dtype, p.device, p.shape, p.stride(), grad.dtype, grad.layout, master, sharding(grad)


def refuse_unsupported(p: Tensor) -> None:
    """Raise a ValueError for a complex or sparse parameter or gradient, which no backend takes."""
    if p.is_complex():
        raise ValueError("complex parameters are not supported: give torch.view_as_real() of them.")
    if p.layout != torch.strided or (p.grad is not None and p.grad.layout != torch.strided):
        raise ValueError("sparse parameters and gradients are not supported: build the layer with sparse=False.")


def compute_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype that the steps of a tensor are computed in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _master(group: dict[str, Any], state: MutableMapping[Tensor, dict[str, Tensor]], p: Tensor) -> bool:
    """Return whether a parameter has a float32 master copy, which is made here where it is wanted."""
    own = state[p]
    if p.dtype == compute_dtype(p):
        own.pop("master", None)  # of a time when the parameter was of lower precision
        return False
    if group["master_weights"] and "master" not in own:
        own["master"] = p.detach().to(compute_dtype(p), copy=True)
    return "master" in own


def _of_elements(t: Tensor, p: Tensor, key: str) -> bool:
    """Return whether a state tensor has an element for each of a local tensor's; scales may be as many by chance."""
    return t.shape == p.shape and not of_blocks(key)


def _row_major(p: Tensor, t: Tensor) -> Tensor:
    """Return the tensor itself where its elements lie in row-major order, else a copy of it."""
    return t.contiguous()


def _lying_as(p: Tensor, t: Tensor) -> Tensor:
    """Return a tensor of the parameter's shape with the parameter's strides, itself or a copy, and other tensors as they are."""
    if t.stride() == p.stride() or t.shape != p.shape:
        return t
    return torch.empty_like(p, dtype=t.dtype).copy_(t)
