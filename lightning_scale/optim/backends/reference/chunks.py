"""A bucket's elements chunk by chunk: read as 1-D tensors of compute dtype, and written back as they stand in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, Guard
from lightning_scale.optim.backends.device import dense, in_memory_order, widest
from lightning_scale.optim.backends.rounding import keys, random_bits, stochastically_rounded
from lightning_scale.optim.state.moments import Moment, store

LARGEST = 1 << 18
"""Elements of a chunk, at most: what is converted to compute dtype at one time. Whole blocks of the 8-bit code."""


@dataclass(frozen=True)
class Chunk:
    """Some elements of one layer.

    Args:
        bucket: Whose.
        guard: The clip and the non-finite test of this step.
        layer: Which layer's.
        tensor: In which local tensor they lie.
        start: The first one there, row-major.
        length: How many.
        moments: Theirs, by key.
        layer_start: The first one's number in the layer.
        key: Of their run, where weights in bfloat16 are rounded stochastically: see `rounding.keys`.
    """

    bucket: Bucket
    guard: Guard
    layer: int
    tensor: int
    start: int
    length: int
    moments: dict[str, Moment]
    layer_start: int
    key: Tensor | None

    @property
    def decay(self) -> float:
        """λ."""
        return self.bucket.weight_decay[self.layer]

    def weight(self) -> Tensor:
        """The master's, but the parameter's own where that is no longer the rounded master: somebody has written into it."""
        w, p = self._read(self.bucket.weights), self.bucket.params[self.tensor]
        if p is self.bucket.weights[self.tensor]:
            return w
        own = self._read(self.bucket.params)
        return torch.where(w.to(p.dtype) == own, w, own)

    def gradient(self) -> Tensor:
        """Clipped, downhill, and zero on a non-finite step."""
        g = self._read(self.bucket.grads)
        g = -g if self.bucket.group["maximize"] else g
        if self.guard.clip is not None:
            g = g * self.guard.clip.to(g.device, g.dtype)
        # Zero times NaN is NaN, so the value is chosen, not multiplied.
        return g if self.guard.finite is None else torch.where(self.guard.finite.to(g.device), g, 0.0)

    def moment(self, key: str) -> Tensor:
        return self.moments[key].read()

    def set_weight(self, values: Tensor) -> None:
        """Store new weights, and round them into parameters whose masters they are."""
        bucket, target = self.bucket, self._of(self.bucket.weights)
        if self.key is not None and target.dtype == torch.bfloat16:
            values = stochastically_rounded(values, random_bits(self._index(target), self.key))
        store(target, values, self._finite())
        if bucket.params[self.tensor] is not bucket.weights[self.tensor]:
            store(self._of(bucket.params), values, self._finite())

    def _index(self, target: Tensor) -> Tensor:
        """The numbers of the elements in the layer: as they lie in memory, where kernels go through it, else row-major."""
        index = torch.arange(self.layer_start, self.layer_start + self.length, device=target.device)
        if self.bucket.in_order or target.is_contiguous() or not dense(target):
            return index
        lying = torch.empty_like(target, dtype=torch.int64)
        in_memory_order(lying).copy_(index)
        return lying.reshape(-1)

    def set_moment(self, key: str, values: Tensor) -> None:
        """Store a new moment, in 8 bits where it is kept so."""
        self.moments[key].write(values, self._finite())

    def _read(self, tensors: list[Tensor]) -> Tensor:
        return self._of(tensors).reshape(-1).to(self.bucket.compute)

    def _of(self, tensors: list[Tensor]) -> Tensor:
        """A view; the whole of a tensor that is not contiguous, in its own shape."""
        t = tensors[self.tensor]
        return t if self.length == t.numel() else t.view(-1)[self.start : self.start + self.length]

    def _finite(self) -> Tensor | None:
        return None if self.guard.finite is None else self.guard.finite.to(self.bucket.device)


def _keys(bucket: Bucket) -> Tensor:
    """[runs, 4]: see `rounding.keys`."""
    runs = bucket.layout.runs

    def columns() -> Tensor:
        numbers = [[run.layer for run in runs], [run.tensor for run in runs], [0] * len(runs)]
        return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(bucket.device)

    return keys(bucket, *bucket.layout.once(("rounding of runs", bucket.device), columns))


def chunks(bucket: Bucket, guard: Guard) -> Iterator[Chunk]:
    """All elements, each once, in order.

    Layers are cut at multiples of `LARGEST` of their own elements, so that no block is cut and sums add the same numbers in
    every layout. A tensor that is not contiguous is one chunk.
    """
    kinds = {key: bucket.moments_of_runs(key) for key in bucket.remembers}
    keys_of: Sequence[Tensor | None] = [None] * len(bucket.layout.runs)
    if bucket.rounding_seed is not None:
        keys_of = _keys(bucket).unbind()
    for number, (run, key) in enumerate(zip(bucket.layout.runs, keys_of, strict=True)):
        flat = all(t[run.tensor].is_contiguous() for t in (bucket.params, bucket.weights, bucket.grads))
        offset = 0
        while offset < run.length:
            left = LARGEST - (run.layer_start + offset) % LARGEST
            length = min(left, run.length - offset) if flat else run.length
            own = {key: of_runs[number].part(offset, length) for key, of_runs in kinds.items()}
            start = run.layer_start + offset
            yield Chunk(bucket, guard, run.layer, run.tensor, run.tensor_start + offset, length, own, start, key)
            offset += length


def norms(bucket: Bucket, guard: Guard, measured: Callable[[Chunk], Tensor]) -> Tensor:
    """[2, layers] float64: this rank's share of ‖w‖, and of the norm of what ``measured`` gives of each chunk."""
    squares = torch.zeros(2, len(bucket.layout.layers), dtype=widest(bucket.device), device=bucket.device)
    for chunk in chunks(bucket, guard):
        for row, values in zip(squares, (chunk.weight(), measured(chunk)), strict=True):
            row[chunk.layer] += torch.linalg.vector_norm(values, dtype=squares.dtype).square()
    return squares.sqrt()


def count(bucket: Bucket, guard: Guard) -> None:
    """One step more for each tensor, unless it is skipped."""
    for step in bucket.steps:
        step += 1.0 if guard.finite is None else guard.finite.to(step.device, step.dtype)
