"""Where each parameter's elements live: runs of parameters inside local tensors.

Everything layer-wise is written once, over runs. A plain parameter is one run, a sharded one has a run in each rank's
local tensor, and a flat partition holds runs of many parameters. A `Layout` describes the tensors of one bucket on this rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class LayerInfo:
    """A whole parameter (a layer), wherever its elements live."""

    name: str
    numel: int
    """The elements of the whole parameter, not of this rank's share."""
    ndim: int
    """The dimensions of the whole parameter, before any flattening; 1 of weight_norm's lengths of rows, whatever their shape."""
    full_precision: bool = False
    """Whether the moments are never in 8 bits."""


# What torch.compile, checkpoint_wrapper and FSDP's first version put into names.
_WRAPPERS = re.compile(r"\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
# The lengths of rows, of parametrizations.weight_norm and of the older one.
_LENGTHS = re.compile(r"(^|\.)(parametrizations\.\w+\.original0|\w*weight\w*_g)$")


def bare(name: str) -> str:
    """Return a parameter's name without what wrappers put into it."""
    return _WRAPPERS.sub("", name)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a parameter's name, as it is or without what wrappers put into it, matches one of fnmatch's patterns."""
    return any(fnmatchcase(own, pattern) for pattern in patterns for own in (name, bare(name)))


def layer_info(name: str, shape: Sequence[int], full_precision: Sequence[str] = ()) -> LayerInfo:
    """Return what is known of a whole parameter.

    Args:
        name: The parameter's name.
        shape: The shape of the whole parameter.
        full_precision: Patterns of the names of parameters whose moments are never in 8 bits.
    """
    numel = math.prod(shape)
    lengths = _LENGTHS.search(name) is not None and numel == max(shape, default=1)
    ndim = min(len(shape), 1) if lengths else len(shape)
    return LayerInfo(name, numel, ndim, matches(name, full_precision))


@dataclass(frozen=True)
class Run:
    """A run of elements of one layer inside one local tensor: their numbers, and where the run begins in both, in elements."""

    layer: int
    tensor: int
    tensor_start: int
    layer_start: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The runs of the tensors that are stepped together.

    Args:
        layers: The whole parameters, in order.
        runs: This rank's runs. Those of one local tensor follow one another and fill it, but for padding.
        tensor_numels: The number of elements of each local tensor.
        all_reduce: A function that sums a 1-D float tensor over the ranks that share the layers, in place, or ``None`` where
            every layer lies whole on this rank.
        pieces: Whether the local tensors are pieces of a flat one, so that not every layer has one, nor every one a layer.
    """

    layers: tuple[LayerInfo, ...]
    runs: tuple[Run, ...]
    tensor_numels: tuple[int, ...]
    all_reduce: Callable[[Tensor], None] | None = None
    pieces: bool = False

    @cached_property
    def whole(self) -> bool:
        """Whether each local tensor is exactly one whole layer, so that no views and no sums over runs are needed."""
        return len(self.runs) == len(self.layers) == len(self.tensor_numels) and all(
            (s.layer, s.tensor, s.tensor_start, s.length) == (i, i, 0, self.tensor_numels[i])
            and s.length == self.layers[i].numel
            for i, s in enumerate(self.runs)
        )

    @cached_property
    def cache(self) -> dict[Any, Any]:
        """Whatever kernels have worked out from this layout, to be used again as long as it lasts."""
        return {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what ``make()`` returned when this key was asked for first."""
        if key not in self.cache:
            self.cache[key] = make()
        found: T = self.cache[key]
        return found

    @cached_property
    def gave_up(self) -> dict[torch.device, Tensor]:
        """A flag for each device, [1] int32 in memory that the host reads and the device writes: 0, or 1 + the number of a layer
        whose trust ratio a kernel has waited for in vain."""
        return {}

    @cached_property
    def captured(self) -> list[Tensor]:
        """The tensors of a step that CUDA graphs read and write; graphs are replayed without asking whether these still exist."""
        return []

    @cached_property
    def copied_by_graphs(self) -> list[tuple[Any, list[Any], Tensor]]:
        """The host's numbers that CUDA graphs bring to a device at every replay: their key, the numbers, and where they lie."""
        return []

    def part(self, tensor: int) -> Layout:
        """Return what one of the local tensors holds, as a layout of its own."""
        if len(self.tensor_numels) == 1:
            return self
        if self.pieces:
            own = tuple(replace(s, tensor=0) for s in self.runs if s.tensor == tensor)
            return replace(self, runs=own, tensor_numels=(self.tensor_numels[tensor],))
        assert all(s.layer == s.tensor for s in self.runs), "of several tensors, each holds one layer"
        own = tuple(replace(s, layer=0, tensor=0) for s in self.runs if s.tensor == tensor)
        return Layout((self.layers[tensor],), own, (self.tensor_numels[tensor],), self.all_reduce)

    def views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the runs of these local tensors as views, which are the tensors themselves where the layout is whole."""
        if self.whole:
            return list(tensors)
        return [
            tensors[s.tensor]
            if s.length == self.tensor_numels[s.tensor]
            else tensors[s.tensor].view(-1)[s.tensor_start : s.tensor_start + s.length]  # flat tensors are contiguous
            for s in self.runs
        ]


def whole_layout(names: Sequence[str], tensors: Sequence[Tensor], full_precision: Sequence[str] = ()) -> Layout:
    """Return the layout of plain parameters, which have one run each; see `layer_info` for the patterns."""
    return Layout(
        layers=tuple(layer_info(n, t.shape, full_precision) for n, t in zip(names, tensors, strict=True)),
        runs=tuple(Run(i, i, 0, 0, t.numel()) for i, t in enumerate(tensors)),
        tensor_numels=tuple(t.numel() for t in tensors),
    )
