"""Local tensors in pieces: what is converted to float32 at one time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedBucket

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


def place(tensor: Tensor, piece: Piece) -> Tensor:
    """The piece of a local tensor, as a view: the whole of one that is not flat, in its own shape."""
    if not tensor.is_contiguous():
        assert (piece.start, piece.length) == (0, tensor.numel()), "a tensor that is not contiguous is one piece"
        return tensor
    flat = tensor if tensor.ndim == 1 else tensor.view(-1)
    return flat if flat.numel() == piece.length else flat[piece.start : piece.start + piece.length]
