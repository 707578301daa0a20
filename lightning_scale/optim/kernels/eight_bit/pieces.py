"""Local tensors in pieces, and pieces in batches: what is converted to float32 at one time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import Moment, store
from lightning_scale.optim.kernels.eight_bit.work import CodedBucket
from lightning_scale.optim.kernels.masking import guarded_grads
from lightning_scale.optim.kernels.work import Guard

# Elements, whole blocks: a float32 piece is 1 MiB, and the ten or so that a step holds at a time stay in a CPU's cache.
LARGEST_PIECE = 1 << 18


@dataclass(frozen=True)
class Piece:
    """A run of elements of one segment."""

    segment: int
    layer: int
    tensor: int
    start: int
    """The first element's place in the local tensor (row-major)."""
    offset: int
    """The first element's place in the segment."""
    length: int


Batch = Sequence[Piece]
"""Pieces of any layers that multi-tensor operations take together."""


def batches(bucket: CodedBucket) -> list[Batch]:
    """The bucket's pieces in order, as many together as have the elements of the largest piece.

    A call of torch's takes longer than to step a small layer, so small layers share their calls.
    """
    found: list[list[Piece]] = []
    room = 0
    for piece in pieces(bucket):
        if piece.length > room:
            found.append([])
            room = LARGEST_PIECE
        found[-1].append(piece)
        room -= piece.length
    return list(found)


def pieces(bucket: CodedBucket) -> Iterator[Piece]:
    """The bucket's elements, each once, in order.

    Segments are cut at multiples of `LARGEST_PIECE` of their layer's elements, so that no block is cut and sums over
    pieces add the same numbers in every layout. A tensor that is not contiguous is one piece.
    """
    for number, s in enumerate(bucket.layout.segments):
        flat = all(t[s.tensor].is_contiguous() for t in (bucket.params, bucket.weights, bucket.grads))
        offset = 0
        while offset < s.length:
            left = LARGEST_PIECE - (s.layer_start + offset) % LARGEST_PIECE
            length = min(left, s.length - offset) if flat else s.length
            yield Piece(number, s.layer, s.tensor, s.tensor_start + offset, offset, length)
            offset += length


def weight(bucket: CodedBucket, batch: Batch) -> list[Tensor]:
    """The pieces' weights in compute dtype, 1-D: read only."""
    return [_place(bucket.weights[piece.tensor], piece).reshape(-1).to(bucket.compute) for piece in batch]


def gradient(bucket: CodedBucket, batch: Batch, guard: Guard) -> list[Tensor]:
    """The pieces' gradients in compute dtype, 1-D, clipped, downhill, and zero on a non-finite step: read only."""
    grads = [_place(bucket.grads[piece.tensor], piece).reshape(-1).to(bucket.compute) for piece in batch]
    if bucket.maximize:
        grads = list(torch._foreach_neg(grads))
    return guarded_grads(grads, guard)


def add_weight_decay(bucket: CodedBucket, batch: Batch, tensors: list[Tensor]) -> None:
    """``tensors += λ·w``, each layer with its own λ, in place."""
    decays = [bucket.weight_decay[piece.layer] for piece in batch]
    decayed = [i for i, decay in enumerate(decays) if decay]
    if decayed:
        weights = weight(bucket, [batch[i] for i in decayed])
        torch._foreach_add_([tensors[i] for i in decayed], torch._foreach_mul(weights, [decays[i] for i in decayed]))


def read(moments: Sequence[Moment], batch: Batch) -> list[Tensor]:
    """The pieces of a moment, 1-D: read only."""
    return [moments[piece.segment].part(piece.offset, piece.length).read() for piece in batch]


def write(bucket: CodedBucket, moments: Sequence[Moment], batch: Batch, values: list[Tensor], guard: Guard) -> None:
    """Store the pieces of a moment."""
    finite = finite_on(guard, bucket.device)
    for piece, each in zip(batch, values, strict=True):
        moments[piece.segment].part(piece.offset, piece.length).write(each, finite)


def set_weight(bucket: CodedBucket, batch: Batch, values: list[Tensor], guard: Guard) -> None:
    """Store new weights, and round them into parameters whose master copies they are."""
    finite = finite_on(guard, bucket.device)
    for piece, each in zip(batch, values, strict=True):
        weight, param = bucket.weights[piece.tensor], bucket.params[piece.tensor]
        store(_place(weight, piece), each, finite)
        if param is not weight:
            store(_place(param, piece), each, finite)


def finite_on(guard: Guard, device: torch.device) -> Tensor | None:
    """The guard's test on the device that is to be masked."""
    return None if guard.finite is None else guard.finite.to(device)


def _place(tensor: Tensor, piece: Piece) -> Tensor:
    """The piece of a local tensor, as a view: the whole of one that is not flat, in its own shape."""
    if not tensor.is_contiguous():
        assert (piece.start, piece.length) == (0, tensor.numel()), "a tensor that is not contiguous is one piece"
        return tensor
    flat = tensor.view(-1)
    return flat if len(flat) == piece.length else flat[piece.start : piece.start + piece.length]
