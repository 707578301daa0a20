"""Local tensors in pieces: what is converted to float32 at one time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import store
from lightning_scale.optim.kernels.eight_bit.work import CodedBucket
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


def weight(bucket: CodedBucket, piece: Piece) -> Tensor:
    """The piece's weights in compute dtype, 1-D: read only."""
    return _place(bucket.weights[piece.tensor], piece).reshape(-1).to(bucket.compute)


def gradient(bucket: CodedBucket, piece: Piece, guard: Guard) -> Tensor:
    """The piece's gradient in compute dtype, 1-D, clipped, downhill, and zero on a non-finite step: read only."""
    grad = _place(bucket.grads[piece.tensor], piece).reshape(-1).to(bucket.compute)
    if bucket.maximize:
        grad = -grad
    if guard.clip is not None:
        grad = grad * guard.clip.to(grad)
    if guard.finite is not None:
        grad = torch.where(guard.finite.to(grad.device), grad, 0.0)
    return grad


def set_weight(bucket: CodedBucket, piece: Piece, values: Tensor, guard: Guard) -> None:
    """Store new weights, and round them into a parameter whose master copy they are."""
    finite = finite_on(guard, bucket.device)
    weight, param = bucket.weights[piece.tensor], bucket.params[piece.tensor]
    store(_place(weight, piece), values, finite)
    if param is not weight:
        store(_place(param, piece), values, finite)


def finite_on(guard: Guard, device: torch.device) -> Tensor | None:
    """The guard's test on the device that is to be masked."""
    return None if guard.finite is None else guard.finite.to(device)


def _place(tensor: Tensor, piece: Piece) -> Tensor:
    """The piece of a local tensor, as a view: the whole of one that is not flat, in its own shape."""
    if not tensor.is_contiguous():
        assert (piece.start, piece.length) == (0, tensor.numel()), "a tensor that is not contiguous is one piece"
        return tensor
    return tensor.view(-1)[piece.start : piece.start + piece.length]
