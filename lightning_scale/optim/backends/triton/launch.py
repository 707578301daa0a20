"""How the kernels are launched, and what those of the 8-bit optimizers are launched with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.choice import interpreted
from lightning_scale.optim.backends.rounding import keys
from lightning_scale.optim.backends.triton.chunks import (
    Addresses,
    MomentAddresses,
    QuantizedChunks,
    addresses,
    moment_addresses,
    quantized_chunks,
)
from lightning_scale.optim.backends.triton.elements import triton_type
from lightning_scale.optim.backends.triton.quantization import search_table
from lightning_scale.optim.layout import LayerInfo
from lightning_scale.optim.quantization import SIGNED, UNSIGNED

launches = 0
"""Kernels launched by this process so far, for tests and measurements."""


def block() -> int:
    """Elements that a program takes at a time; the interpreter's time is one per block, whatever its size."""
    return 8192 if interpreted() else 1024


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """Run a kernel in so many programs; none where there is nothing to do.

    It runs where its first argument, a tensor, lies, whichever device is torch's current one: Triton launches on that.

    Numbers that it computes with must be ``float``: of an ``int`` like ``eps=0`` Triton would make another kernel.
    """
    global launches
    if programs:
        device = args[0].device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            # Products and sums rounded one by one: the bits of the plain torch operations, and of the interpreter.
            kernel[(programs,)](*args, enable_fp_fusion=False, **options)
        launches += 1


def guard_arguments(guard: Guard, device: torch.device) -> tuple[Tensor, Tensor, dict[str, bool]]:
    """The finite flag, the clip factor, and which of them count; what does not count is some tensor of the right kind."""
    finite = (
        guard.finite.to(device, torch.int8)
        if guard.finite is not None
        else torch.empty(0, dtype=torch.int8, device=device)
    )
    clip = guard.clip.to(device, torch.float32) if guard.clip is not None else torch.empty(0, device=device)
    return finite, clip, {"TEST": guard.finite is not None, "CLIP": guard.clip is not None}


# One warp takes one block at a time: what its threads tell one another, the block's largest magnitude, needs no barrier, and
# its scale is one number. Each thread has two loads of four elements of each tensor under way.
WARPS = 1
ROWS = 1
# The interpreter's time is one per block, whatever its size.
INTERPRETED_ROWS = 32


@dataclass(frozen=True)
class Prepared:
    """A bucket's tensors, contiguous, and what kernels find them by."""

    bucket: Bucket
    params: list[Tensor]
    weights: list[Tensor]
    chunks: QuantizedChunks
    tensors: tuple[Addresses, Addresses, Addresses]
    """Of params, weights and gradients."""
    moments: dict[str, MomentAddresses]
    rounding_keys: Tensor | None
    """[chunks, 4] int32, where weights are rounded stochastically."""
    finite: Tensor
    clip: Tensor
    options: dict[str, Any]

    def launch(self, kernel: Any, *args: Any, **options: Any) -> None:
        """Run a kernel over all chunks: those in 8 bits and the small layers' each in one launch.

        Args:
            kernel: Its arguments: pointers of params, weights, gradients, each moment's numbers and scales; chunks; their keys;
                then what follows.
            args: What follows; of a `PerChunk` the launch's own part.
            options: Constants beside those that all kernels take.
        """
        for plain, first, programs in self._kinds():
            rounding = self.chunks.table if self.rounding_keys is None else self.rounding_keys[first:]
            numbers = [(m.small if plain else m.codes, m.scales) for m in self.moments.values()]
            if not numbers:  # an optimizer that remembers nothing: not used
                numbers = [(self.tensors[1], self.tensors[1])]
            aligned = self.chunks.aligned[plain] and all(a.aligned for a in (*self.tensors, *(n for n, _ in numbers)))
            launch(
                kernel,
                programs,
                *(a.table for a in self.tensors),
                *(a.table for pair in numbers for a in pair),
                self.chunks.table[first:],
                rounding,
                *(a.rows[first:] if isinstance(a, PerChunk) else a for a in args),
                PLAIN=plain,
                ALIGNED=aligned,
                **self.options,
                **options,
                num_warps=WARPS,
            )

    def _kinds(self) -> Iterator[tuple[bool, int, int]]:
        yield False, 0, self.chunks.quantized
        yield True, self.chunks.quantized, self.chunks.count - self.chunks.quantized

    def copy_back(self) -> None:
        """Bring what was written into contiguous copies to where it belongs."""
        for own, used in ((self.bucket.params, self.params), (self.bucket.weights, self.weights)):
            for target, values in zip(own, used, strict=True):
                if target is not values:
                    target.copy_(values)


@dataclass(frozen=True)
class PerChunk:
    """A tensor with a row for each chunk."""

    rows: Tensor


def prepare(bucket: Bucket, guard: Guard) -> Prepared:
    """Everything that a step's kernels have in common.

    Raises:
        ValueError: for a state that is not this optimizer's.
    """
    layout, device = bucket.layout, bucket.device
    weights = [w.contiguous() for w in bucket.weights]
    same = all(p is w for p, w in zip(bucket.params, bucket.weights, strict=True))
    params = weights if same else [p.contiguous() for p in bucket.params]
    grads = [g.contiguous() for g in bucket.grads]
    finite, clip, tests = guard_arguments(guard, device)
    quantized: Callable[[LayerInfo], bool] = next((m.quantized for m in bucket.moments.values()), _none)
    chunks = quantized_chunks(layout, quantized, device)
    tensors = {"params": params, "weights": weights, "grads": grads}
    found = [addresses(layout, name, list(values), device) for name, values in tensors.items()]
    return Prepared(
        bucket=bucket,
        params=params,
        weights=weights,
        chunks=chunks,
        tensors=(found[0], found[1], found[2]),
        moments={name: moment_addresses(layout, name, m, device) for name, m in bucket.moments.items()},
        rounding_keys=rounding_keys(bucket, chunks.table[:, 4], chunks.table[:, 0], chunks.layer_start),
        finite=finite,
        clip=clip,
        options={
            "PARAM": triton_type(params[0].dtype),
            "WEIGHT": triton_type(weights[0].dtype),
            "GRAD": triton_type(grads[0].dtype),
            "MASTER": not same,
            "STOCHASTIC": bucket.rounding_seed is not None,
            "UPHILL": bucket.group["maximize"],
            "ROWS": INTERPRETED_ROWS if interpreted() else ROWS,
            **tests,
        },
    )


def rounding_keys(bucket: Bucket, layers: Tensor, tensors: Tensor, starts: Tensor) -> Tensor | None:
    """[chunks, 4] int32: `rounding.keys`, or None where weights are rounded to the nearest."""
    if bucket.rounding_seed is None:
        return None
    return keys(bucket, layers, tensors, starts).to(torch.int32)


def _none(_: LayerInfo) -> bool:
    return False


@cache
def code_tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The signed code's values and `search_table`, and the unsigned one's."""
    return (
        SIGNED.values(device),
        search_table(True, device),
        UNSIGNED.values(device),
        search_table(False, device),
    )


def count(steps: list[Tensor], guard: Guard) -> None:
    """One step more for each local tensor, unless it is skipped."""
    if steps:
        torch._foreach_add_(steps, 1.0 if guard.finite is None else guard.finite.to(steps[0].device, torch.float32))
