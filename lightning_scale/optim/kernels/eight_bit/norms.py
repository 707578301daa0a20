"""Norms of whole layers, measured piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.pieces import Piece, pieces, weight
from lightning_scale.optim.kernels.eight_bit.work import CodedBucket


def piecewise_norms(bucket: CodedBucket, measured: Callable[[Piece], Tensor]) -> Tensor:
    """This rank's share of ‖w‖ and of the norm of something else, [2, layers] float64.

    Sums are in float64: rounded to float32 in the end, they do not depend on how a layer is cut.

    Args:
        bucket: Whose weights to measure.
        measured: Gives the something else of one piece.
    """
    parts: list[list[Tensor]] = [[] for _ in bucket.layout.layers]
    for piece in pieces(bucket):
        both = (weight(bucket, piece), measured(piece))
        parts[piece.layer].append(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in both]))
    nothing = torch.zeros(2, dtype=torch.float64, device=bucket.device)
    layers = [_root_sum_square(p) if p else nothing for p in parts]
    return torch.stack(layers, dim=1) if layers else nothing.new_zeros(2, 0)


def _root_sum_square(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)
