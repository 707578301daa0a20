"""Norms of whole layers, measured piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.pieces import Piece, pieces, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedBucket
from lightning_scale.optim.kernels.norms import over_ranks

BucketT = TypeVar("BucketT", bound=CodedBucket)


def piecewise_norms(
    buckets: Sequence[BucketT], measured: Callable[[BucketT, Piece], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """‖w‖ and the norm of something else, of whole layers over all ranks, in at most one collective.

    Sums are in float64: rounded to float32 in the end, they do not depend on how a layer is cut.

    Args:
        buckets: Whose weights to measure.
        measured: Gives the something else of one piece.

    Returns:
        Two 1-D tensors for each bucket, one number a layer, in its compute dtype.
    """
    return norms_over_ranks(buckets, [_own_norms(bucket, measured) for bucket in buckets])


def norms_over_ranks(buckets: Sequence[BucketT], own: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Two norms of whole layers in compute dtype, from this rank's own (1-D float64: of each layer one, then the other)."""
    norms = over_ranks([(bucket.layout, n) for bucket, n in zip(buckets, own, strict=True)])
    pairs = [n.to(b.compute).view(2, -1) for n, b in zip(norms, buckets, strict=True)]
    return [(pair[0], pair[1]) for pair in pairs]


def _own_norms(bucket: BucketT, measured: Callable[[BucketT, Piece], Tensor]) -> Tensor:
    """This rank's share of both norms, 1-D float64: ‖w‖ of each layer, then the other of each."""
    parts: list[list[Tensor]] = [[] for _ in bucket.layout.layers]
    for piece in pieces(bucket):
        both = (weight(bucket, piece), measured(bucket, piece))
        parts[piece.layer].append(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in both]))
    nothing = torch.zeros(2, dtype=torch.float64, device=bucket.device)
    layers = [_root_sum_square(p) if p else nothing for p in parts]
    return torch.stack(layers, dim=1).reshape(-1) if layers else nothing[:0]


def _root_sum_square(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)
