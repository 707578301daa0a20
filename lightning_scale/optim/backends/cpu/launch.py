"""What the kernels are launched with: chunks of layers, tensors by address, numbers; and how chunks are spread over threads.

The kernels let go of the interpreter's lock, so that threads take them: torch's, or Python's own. A threading layer of numba's
would not live through a fork, or abort where two threads step at once.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_scale.optim.backends.bucket import Addresses, Bucket, FirstPass, Guard, LayerNorms, addresses
from lightning_scale.optim.backends.cpu import elements
from lightning_scale.optim.backends.cut import GROUP, cut
from lightning_scale.optim.backends.rounding import keys
from lightning_scale.optim.layout import Layout

CHUNK = 1 << 15
"""Elements of a chunk. Layers are cut at multiples of it, wherever their elements live, so that sums add the same numbers."""

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Whole layers that take both passes before the next ones begin; all in 8 bits, or none.

    Args:
        begin: The first chunk.
        end: The one after the last.
        quantized: Whether their moments are in 8 bits.
    """

    begin: int
    end: int
    quantized: bool


@dataclass(frozen=True)
class Chunks:
    """The chunks of a layout, in order of their groups: 1-D columns of C numbers each.

    Args:
        columns: As kernels take them: the layer; the local tensor; where in it the chunk begins and ends; where in the moment's
            tensor it begins; where in the memory that keeps updates; its first block's number among the tensor's scales; and how
            many elements of that block come before it.
        groups: In order.
        spans: The same, joined where neighbours' moments are alike, for what takes one pass.
        scratch: Elements of the memory that keeps updates.
        layer_start: Each chunk's first element, counted in the layer.
        used: Local tensors that have chunks, 1-D.
        sums: [2, C] float64: what kernels sum over each chunk.
    """

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    spans: tuple[Group, ...]
    scratch: int
    layer_start: Column
    used: Column
    sums: NDArray[np.float64]

    def past_cache(self, group: Group) -> bool:
        """Return whether a group's updates are more than a cache holds until the second pass needs them."""
        last = group.end - 1
        return bool(self.place[last] - self.place[group.begin] >= CACHE)

    @property
    def layer(self) -> Column:
        return self.columns[0]

    @property
    def at(self) -> Column:
        return self.columns[4]

    @property
    def place(self) -> Column:
        return self.columns[5]

    @property
    def count(self) -> int:
        return len(self.columns[0])


def chunks_of(layout: Layout, quantized: tuple[bool, ...]) -> Chunks:
    """The chunks of a layout, kept with it.

    Args:
        layout: Where the elements live.
        quantized: Of each layer, whether its moments are in 8 bits.
    """
    return layout.once(("cpu chunks", quantized), lambda: _cut(layout, quantized))


def _cut(layout: Layout, quantized: tuple[bool, ...]) -> Chunks:
    chunks = [chunk for chunk in cut(layout, quantized, CHUNK) if chunk.length]
    whole = layout.all_reduce is None
    rows: list[tuple[int, ...]] = []
    groups: list[Group] = []
    first = held = scratch = 0
    for chunk, following in zip_longest(chunks, chunks[1:]):
        begin, end = chunk.start, chunk.start + chunk.length
        rows.append((chunk.layer, chunk.tensor, begin, end, chunk.at, held, chunk.block, chunk.lead))
        held += chunk.length if whole else -(-chunk.length // LINE) * LINE
        scratch = max(scratch, held)
        # Where other ranks hold a share of the layers, the second pass of all of them comes after the first of all.
        full = whole and held >= GROUP and following is not None and following.layer != chunk.layer
        if following is None or following.quantized != chunk.quantized or full:
            groups.append(Group(first, len(rows), chunk.quantized))
            first, held = len(rows), 0 if whole else held
    table = np.array(rows, np.int64).reshape(-1, 8).T
    columns = tuple(np.ascontiguousarray(column) for column in table)
    starts = np.array([chunk.layer_start for chunk in chunks], np.int64)
    alike = [list(own) for _, own in groupby(groups, lambda group: group.quantized)]
    spans = [Group(own[0].begin, own[-1].end, own[0].quantized) for own in alike]
    return Chunks(
        columns, tuple(groups), tuple(spans), scratch, starts, np.unique(columns[1]), np.zeros((2, len(rows)))
    )


CACHE = 1 << 23
"""Updates that are at least as many are stored past the cache: 32 MB."""
LINE = 16
"""Numbers of float32 in a line of a cache, which is stored past it as a whole."""
TURN = 16
"""Chunks that a thread draws at a time, at most."""


class Launch:
    """A bucket's tensors as kernels find them.

    Args:
        bucket: What is stepped.
        guard: The clip of this step.
        needs: What every parameter must have in its state; of moments, only what is named here or there is used.

    Raises:
        ValueError: for a state that is not this optimizer's, before anything is changed.

    Attributes:
        weights: What the step is computed on, contiguous where moments lie in row-major order.
        grads: Gradients, likewise.
        tensors: Addresses of weights, of the parameters that these are rounded into (weights themselves where those are no
            masters), and of gradients; `rounding_keys`.
        kinds: The types of each; of parameters that are their own weights -1.
        factor: What gradients are multiplied by: the clip, and -1 uphill.
        decays: [layers] float32 λ.
    """

    def __init__(self, bucket: Bucket, guard: Guard, needs: Sequence[str] = ()) -> None:
        self.bucket = bucket
        self.chunks = chunks_of(bucket.layout, bucket.quantized)
        ordered = bucket.in_order
        masters = bucket.params[0] is not bucket.weights[0]
        self.weights = [w.contiguous() for w in bucket.weights] if ordered else bucket.weights
        self._params = self.weights
        if masters:
            self._params = [p.contiguous() for p in bucket.params] if ordered else bucket.params
        self.grads = [g.contiguous() for g in bucket.grads] if ordered else bucket.grads
        known = bucket.at
        weights = known["weights"] if known else addresses(self.weights)
        params = weights if not masters else known["params"] if known else addresses(self._params)
        tensors = (weights, params, known["grads"] if known else addresses(self.grads))
        self.tensors = (*tensors, rounding_keys(bucket, self.chunks))
        kind = elements.KINDS
        self.kinds = (
            kind[bucket.weights[0].dtype],
            kind[bucket.params[0].dtype] if masters else -1,
            kind[bucket.grads[0].dtype],
        )
        used = self.chunks.used
        if not all(own[used].all() for own in tensors):
            raise RuntimeError(
                "a tensor that is to be stepped has no memory: this is a fault of lightning_scale, please report it."
            )
        clip = 1.0 if guard.clip is None else float(guard.clip.float())
        self.factor = np.float32(-clip if bucket.group["maximize"] else clip)
        self.decays = np.array(bucket.weight_decay, np.float32)
        self._at = dict(known)
        self._moments: dict[tuple[str, bool], tuple[Addresses, ...]] = {}
        if not known:  # else it was looked at before, and nothing has moved
            bucket.check_state(needs)

    def moment(self, key: str, quantized: bool) -> tuple[Addresses, ...]:
        """[tensors] addresses of a moment: of its numbers, or of its codes and its scales; 0 where nothing is remembered."""
        if (key, quantized) not in self._moments:
            self._moments[key, quantized] = self._moment(key, quantized)
        return self._moments[key, quantized]

    def _moment(self, key: str, quantized: bool) -> tuple[Addresses, ...]:
        if key not in self.bucket.remembers:
            return (np.zeros(len(self.weights), np.int64),)
        if quantized:
            return self._state(key), self._state(f"{key}_absmax")
        # Beside codes stand small layers' numbers in a tensor of their own.
        if not self.bucket.in_order or not any(f"{key}_small" in state for state in self.bucket.states):
            return (self._state(key),)
        small = self._state(f"{key}_small")
        return (np.where(small != 0, small, self._state(key)),)

    def _state(self, key: str) -> Addresses:
        """Of one kind of state; 0 for none."""
        if key not in self._at:
            self._at[key] = addresses([state.get(key) for state in self.bucket.states])
        return self._at[key]

    def scratch(self) -> Addresses:
        """[tensors]: the address of memory for float32 updates, the same for all."""
        memory = self.bucket.scratch.take(self.bucket.place, self.chunks.scratch)
        return np.full(len(self.weights), memory.data_ptr(), np.int64)

    def count_steps(self) -> NDArray[np.float64]:
        """Count this step for each tensor, and return which it is."""
        steps = self._state("step")
        found = np.empty(len(steps))
        elements.count(steps, found)
        return found

    def weight_squares(self) -> Tensor:
        """[layers] float64: this rank's share of ‖w‖²."""
        masters = self.kinds[1] >= 0
        return layer_squares(self.bucket.layout, self.weights, self.tensors[0], self._params if masters else None)

    def run(self, kernel: Any, group: Group, *args: Any) -> None:
        """Run a kernel over a group's chunks."""
        spread(kernel, group.begin, group.end, *args)

    def copy_back(self) -> None:
        """Bring what was written into contiguous copies to where it belongs."""
        if not self.bucket.in_order:
            return
        for own, used in ((self.bucket.weights, self.weights), (self.bucket.params, self._params)):
            if used is not own:
                for target, values in zip(own, used, strict=True):
                    if target is not values and target.data_ptr() != values.data_ptr():
                        target.copy_(values)


_NEAREST = np.zeros((0, 4), np.uint32)


def rounding_keys(bucket: Bucket, chunks: Chunks) -> NDArray[np.uint32]:
    """[chunks, 4]: `rounding.keys` of this step; of none where weights are rounded to the nearest."""
    if bucket.rounding_seed is None:
        return _NEAREST
    rows = keys(bucket, *map(torch.from_numpy, (chunks.layer, chunks.columns[1], chunks.layer_start)))
    return rows.numpy().astype(np.uint32)


def float32s(*numbers: float) -> tuple[np.float32, ...]:
    """Numbers as kernels take them: each rounded once."""
    return tuple(map(np.float32, numbers))


def two_passes(
    bucket: Bucket,
    launch: Launch,
    first: Callable[[Group], None],
    second: Callable[[Group, NDArray[np.float32]], None],
    coefficient: float = 1.0,
) -> FirstPass | LayerNorms:
    """A layer-wise step whose ratio divides by the norm of the update.

    Args:
        bucket: What is stepped.
        launch: Its tensors.
        first: Runs the first pass over a group, and leaves Σ w² and Σ u² of each chunk.
        second: Runs the second, with each layer's rate.
        coefficient: η.

    Returns:
        What is left to do where other ranks hold a share of the layers; else the step is taken, group by group, so that the
        second pass finds in the cache what the first one left there.
    """
    chunks, layers = launch.chunks, len(bucket.layout.layers)
    lr = np.float32(bucket.rate)
    rate = np.zeros(layers, np.float32)
    if bucket.layout.all_reduce is not None:
        for group in chunks.groups:
            first(group)

        def move(ratios: Tensor) -> None:
            rate[:] = ratios.numpy() * lr
            for group in reversed(chunks.groups):
                second(group, rate)
            launch.copy_back()

        return FirstPass(layer_norms(bucket.layout, chunks), move)
    found = np.zeros((3, layers), np.float32)
    found[2] = 1
    adapt, trust = bucket.trust.adapt.numpy(), bucket.trust
    bounds = float32s(*(trust.weight_norm_clip or (0.0, math.inf)), *(trust.clip or (0.0, math.inf)))
    numbers = (chunks.layer, chunks.sums, adapt, bounds, np.float32(coefficient), lr, trust.larc, found, rate)
    for group in chunks.groups:
        first(group)
        elements.finish_layers(group.begin, group.end, *numbers)
        second(group, rate)
    launch.copy_back()
    return LayerNorms(*torch.from_numpy(found).unbind())


def layer_norms(layout: Layout, chunks: Chunks) -> Tensor:
    """[2, layers] float64: the roots of what kernels have summed over each layer's chunks."""
    return torch.from_numpy(np.sqrt(_by_layer(chunks.layer, chunks.sums, len(layout.layers))))


def layer_squares(
    layout: Layout, tensors: Sequence[Tensor], at: Addresses | None = None, params: Sequence[Tensor] | None = None
) -> Tensor:
    """[layers] float64: Σ x² of this rank's share of each layer; NaN or Inf exactly where an element is.

    Args:
        layout: Where the layers lie. One that lists no layers, only runs of them, has one sum for each that a run names.
        tensors: Its local tensors, on CPUs, of one of the kernels' types: dense, or contiguous where they hold runs.
        at: Their addresses, where they are known.
        params: The parameters whose masters they are, which have the say where somebody has written into them.
    """
    layers = layout.once(
        "layers named", lambda: max(len(layout.layers), 1 + max((run.layer for run in layout.runs), default=-1))
    )
    chunks = chunks_of(layout, (False,) * layers)
    sums = np.zeros(chunks.count)
    if chunks.count:
        at = addresses(tensors) if at is None else at
        kind = elements.KINDS[tensors[0].dtype]
        beside = (at, -1) if params is None else (addresses(params), elements.KINDS[params[0].dtype])
        spread(elements.sum_squares, 0, chunks.count, at, kind, *beside, chunks.columns, sums)
    return torch.from_numpy(_by_layer(chunks.layer, sums[None], layers)[0])


def _by_layer(layer: NDArray[np.int64], sums: NDArray[np.float64], layers: int) -> NDArray[np.float64]:
    """[K, layers]: each layer's chunks added in order."""
    return np.stack([np.bincount(layer, weights=own, minlength=layers) for own in sums])


_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pool: tuple[ThreadPoolExecutor | None, int] = None, 0
_forked = False


@cache
def _openmp() -> Callable[..., None] | None:
    """GOMP_parallel(function, data, threads, flags) of the OpenMP that torch has loaded for itself, or None where it has none.

    torch makes the library's names global, so a look among those finds the library that torch's own operations run by: GCC's,
    or LLVM's, which has the same function.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # Windows and macOS
        return None
    function.argtypes, function.restype = (_Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    found: Callable[..., None] = function
    return found


def spread(kernel: Any, begin: int, end: int, *args: Any) -> None:
    """kernel(turns, *args) over the chunks from begin to end, by as many threads as torch uses, which draw them.

    torch's own threads take them where they can be had: these do not sleep until some milliseconds after a backward pass, and
    would hold the cores that others need.
    """
    threads = torch.get_num_threads()
    drawn = np.zeros(1, np.int64)
    turns = (drawn.ctypes.data, begin, end, min(max((end - begin) // (16 * threads), 1), TURN))
    if min(threads, end - begin) <= 1:
        kernel(turns, *args)
        return
    failed: list[BaseException] = []

    def work(_: int | None = None) -> None:
        try:
            kernel(turns, *args)
        except BaseException as error:  # no error may pass through OpenMP's frames
            failed.append(error)

    if not _forked and (parallel := _openmp()) is not None:
        parallel(_Region(work), None, threads, 0)  # all of them: OpenMP ends those that a smaller team leaves out
    else:
        _by_pool(work, threads)
    if failed:
        raise failed[0]


def _by_pool(work: Callable[[], None], threads: int) -> None:
    global _pool
    if _pool[1] < threads - 1:
        _pool = ThreadPoolExecutor(threads - 1, "lightning_scale"), threads - 1
    assert _pool[0] is not None
    others = [_pool[0].submit(work) for _ in range(threads - 1)]
    work()
    wait(others)


def _after_fork() -> None:
    """A child process has none of its parent's threads, and GCC's OpenMP would wait for them."""
    global _pool, _forked
    _pool, _forked = (None, 0), True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
