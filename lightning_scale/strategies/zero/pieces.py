"""Layers without a gradient, left out of a step on flat tensors as DDP leaves out parameters whose ``grad`` is ``None``.

While all layers have the same past, a flat tensor is stepped as it is. Otherwise it is cut into one piece for each layer, a
parameter of its own to the optimizer, so that layers may be missing, and each has its own step count. The pieces are views;
state stays in the flat tensors' state, where DeepSpeed's checkpoints look for it. Numbers that state has once for a tensor,
as ``step``, stand there once for each layer, too, from the first step on that a layer has missed: ``layer_step``, 1-D. Beside
another library's state ``layer_begun`` says which layers have any: those that have not are begun by the optimizer itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.layout import Layout, Run
from lightning_scale.optim.state.moments import PlainMoment, absmax_key
from lightning_scale.optim.state.whole import BY_LAYER, kinds
from lightning_scale.strategies.zero.flat import Flat


class Seen:
    """Notes which layers get a gradient, by hooks of their parameters, and asks the other ranks.

    Args:
        params: What has a gradient, by the layer's name; the same order on all ranks.
        flats: The flat tensors.
    """

    def __init__(self, params: dict[str, Tensor], flats: Sequence[Flat]) -> None:
        self._names = list(params)
        self._seen = [False] * len(params)
        self._all_reduce = flats[0].layout.all_reduce
        for number, p in enumerate(params.values()):
            p.register_hook(self._hook(number))  # type: ignore[no-untyped-call]

    def _hook(self, number: int) -> Any:
        def note(gradient: Tensor | None) -> None:
            if gradient is not None:
                self._seen[number] = True

        return note

    def forget(self) -> None:
        """Begin a window."""
        self._seen = [False] * len(self._names)

    def missing(self, alike: bool) -> frozenset[str]:
        """The layers that no rank has seen a gradient of since `forget`; one collective, on all ranks.

        Args:
            alike: Whether DeepSpeed needs the same layers' gradients on all ranks.

        Raises:
            ConfigurationError: On all ranks, where it does, and some ranks have had a layer's gradient and others have not.
        """
        seen = torch.tensor([*self._seen, True], dtype=torch.float32, device="cpu")  # and how many ranks there are
        if self._all_reduce is not None:
            self._all_reduce(seen)
        *found, ranks = map(int, seen.tolist())
        counts = dict(zip(self._names, found, strict=True))
        partly = [f"{name!r} ({count} of {ranks})" for name, count in counts.items() if 0 < count < ranks]
        if alike and partly:
            raise ConfigurationError(
                f"some ranks have a gradient of a layer and others have none: {', '.join(partly[:3])}. DeepSpeed adds up the"
                " ranks' gradients in the order in which they come, and would add those of different layers: let every rank use"
                " the same layers (add the output of the others, times 0, to the loss), or train under ddp."
            )
        return frozenset(name for name, count in counts.items() if not count)


class Pieces:
    """Hands an optimizer pieces in the place of flat tensors where a layer is missing, or was.

    Args:
        optimizer: The optimizer that the user configured.
        flats: The flat tensors that it steps.
    """

    def __init__(self, optimizer: Optimizer, flats: Sequence[Flat]) -> None:
        self.missing: frozenset[str] = frozenset()
        """The layers that the next step leaves out."""
        self._cut = {id(flat.tensor): _Cut(optimizer, flat) for flat in flats if flat.loaded}
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: Optimizer, *args: Any) -> None:
        for group, cut in self._of(optimizer):
            if cut.is_uneven(self.missing):
                group["params"] = cut.take(self.missing)

    def _after(self, optimizer: Optimizer, *args: Any) -> None:
        for group in optimizer.param_groups:
            for cut in self._cut.values():
                if cut.taken is not None and group["params"] is cut.taken:
                    cut.give_back()
                    group["params"] = [cut.flat.tensor]

    def _of(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], _Cut]]:
        """The groups that hold a flat tensor now: DeepSpeed shows the optimizer one at a time, or all."""
        for group in optimizer.param_groups:
            for p in group["params"][:1]:
                if id(p) in self._cut:
                    yield group, self._cut[id(p)]


class _Cut:
    """One flat tensor in pieces."""

    def __init__(self, optimizer: Optimizer, flat: Flat) -> None:
        self.flat = flat
        self.taken: list[Tensor] | None = None
        self._optimizer = optimizer
        own = flat.tensor.detach()
        self._runs = flat.layout.runs
        self._pieces = [_of(own, run) for run in self._runs]
        self._empty = own[:0]
        self._layouts: dict[frozenset[str], Layout] = {}
        self._active: list[int] = []

    @property
    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = self._optimizer.state[self.flat.tensor]
        return found

    def is_uneven(self, missing: frozenset[str]) -> bool:
        """Whether layers of it, on any rank, are missing in this step or have missed one that they count."""
        return any(layer.name in missing for layer in self.flat.layout.layers) or any(map(_by_layer, self._state))

    def take(self, missing: frozenset[str]) -> list[Tensor]:
        """The pieces of the layers that are stepped, with gradients and state."""
        layout, gradient = self.flat.layout, self.flat.tensor.grad
        self._count_by_layer()
        self._active = [i for i, run in enumerate(self._runs) if layout.layers[run.layer].name not in missing]
        self.taken = [self._pieces[i] for i in self._active]
        for i in self._active:
            self._pieces[i].grad = None if gradient is None else _of(gradient, self._runs[i])
        ours = isinstance(self._optimizer, OptimizerBase)
        states = self._states_of_ours() if ours else [self._elements(run) for run in self._runs]
        begun = self._state.get(_BEGUN, torch.ones(len(layout.layers)))
        for i in self._active:
            if self._state and begun[self._runs[i].layer]:
                self._optimizer.state[self._pieces[i]] = states[i] | self._numbers(self._runs[i].layer)
        if isinstance(self._optimizer, OptimizerBase):
            # Ranks that hold no piece of these layers take part in their collectives, with an empty one.
            self.taken.insert(0, self._empty)
            self._empty.grad = None if gradient is None else gradient[:0]
            self._optimizer.state[self._empty] = self._nothing()
            self._optimizer.attach_pieces(self.taken, self._layout(missing))
        return self.taken

    def give_back(self) -> None:
        """Keep what the step has left in the pieces' state."""
        begun = bool(self._state)
        for i in self._active:
            run, own = self._runs[i], self._optimizer.state.pop(self._pieces[i], {})
            self._pieces[i].grad = None
            if own and not isinstance(self._optimizer, OptimizerBase):
                if _BEGUN not in self._state:
                    self._state[_BEGUN] = torch.full((len(self.flat.layout.layers),), float(begun), device="cpu")
                self._state[_BEGUN][run.layer] = 1.0
            for key, value in own.items():
                if isinstance(value, Tensor) and value.dim() == 1 and len(value) == run.length:
                    if key not in self._state:
                        self._state[key] = torch.zeros_like(self.flat.tensor.detach(), dtype=value.dtype)
                    _write(_of(self._state[key], run), value)
                elif _is_number(value):
                    kept = self._by_layers(key, value)
                    _write(kept[run.layer], torch.as_tensor(value))
                    self._state[key] = type(value)(kept.max().item()) if not isinstance(value, Tensor) else kept.max()
                elif key not in self._state:
                    self._state[key] = value
        self._optimizer.state.pop(self._empty, None)
        self._empty.grad = None
        self.taken = None

    def _count_by_layer(self) -> None:
        for key, value in list(self._state.items()):
            if _is_number(value):
                self._by_layers(key, value)

    def _by_layers(self, key: str, value: Any) -> Tensor:
        """Each layer's own number; made of the one that all have, or of nothing where no step was taken."""
        name = BY_LAYER.format(key)
        if name not in self._state:
            now = self._state.get(key, 0)
            tensor = torch.as_tensor(value)
            self._state[name] = torch.full(
                (len(self.flat.layout.layers),), float(now), dtype=tensor.dtype, device=tensor.device
            )
        found: Tensor = self._state[name]
        return found

    def _numbers(self, layer: int) -> dict[str, Any]:
        found = {}
        for key, value in self._state.items():
            if _is_number(value):
                own = self._state[BY_LAYER.format(key)][layer]
                found[key] = own if isinstance(value, Tensor) else type(value)(own.item())
        return found

    def _states_of_ours(self) -> list[dict[str, Tensor]]:
        """Of each run, in the form of a layer that lies alone."""
        assert isinstance(self._optimizer, OptimizerBase)
        states: list[dict[str, Tensor]] = [{} for _ in self._runs]
        state = {key: value for key, value in self._state.items() if not _by_layer(key)}
        for key, moments in kinds(self.flat.layout, state, self._optimizer._eight_bit_from).items():
            for own, moment in zip(states, moments, strict=True):
                if isinstance(moment, PlainMoment):
                    own[key] = moment.values
                else:
                    own |= {key: moment.codes, absmax_key(key): moment.absmax}
        return states

    def _elements(self, run: Run) -> dict[str, Any]:
        return {
            key: _of(value, run) if isinstance(value, Tensor) and value.shape == self.flat.tensor.shape else value
            for key, value in self._state.items()
            if not _by_layer(key) and not _is_number(value)
        }

    def _nothing(self) -> dict[str, Tensor]:
        state = {key: value for key, value in self._state.items() if not _by_layer(key)}
        return {key: torch.zeros_like(value) if value.dim() == 0 else value[:0] for key, value in state.items()}

    def _layout(self, missing: frozenset[str]) -> Layout:
        missing = frozenset(layer.name for layer in self.flat.layout.layers if layer.name in missing)
        if missing not in self._layouts:
            if len(self._layouts) >= _KEPT:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[missing] = self._made(missing)
        return self._layouts[missing]

    def _made(self, missing: frozenset[str]) -> Layout:
        whole = self.flat.layout
        stepped = [i for i, layer in enumerate(whole.layers) if layer.name not in missing]
        number = {layer: i for i, layer in enumerate(stepped)}
        runs = [self._runs[i] for i in self._active]
        return Layout(
            tuple(whole.layers[i] for i in stepped),
            tuple(Run(number[run.layer], i, 0, run.layer_start, run.length) for i, run in enumerate(runs, 1)),
            (0, *(run.length for run in runs)),
            whole.all_reduce,
            pieces=True,
        )


_KEPT = 8  # layouts of one flat tensor: models that leave out other layers at every step would fill the memory


_BEGUN = BY_LAYER.format("begun")


def _of(t: Tensor, run: Run) -> Tensor:
    return t[run.tensor_start : run.tensor_start + run.length]


def _by_layer(key: Any) -> bool:
    return isinstance(key, str) and key.startswith(BY_LAYER.format(""))


def _is_number(value: Any) -> bool:
    return value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, int | float)


def _write(target: Tensor, value: Tensor) -> None:
    if target.data_ptr() != value.data_ptr():
        target.copy_(value)
