"""Norms of whole layers, measured piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedBucket
from lightning_scale.optim.backends.device import widest
from lightning_scale.optim.kernels.eight_bit.batches import Batch


def piecewise_norms(bucket: CodedBucket, batches: Sequence[Batch], measured: Callable[[Batch], list[Tensor]]) -> Tensor:
    """This rank's share of ‖w‖ and of the norm of something else, [2, layers] float64 (float32 on devices that have none).

    Sums are in float64: rounded to float32 in the end, they do not depend on how a layer is cut.

    Args:
        bucket: Whose weights to measure.
        batches: All of its pieces.
        measured: Gives the something else of some pieces.
    """
    dtype = widest(bucket.device)
    found = [torch.zeros(2, 0, dtype=dtype, device=bucket.device)]
    layers: list[int] = []  # of each piece
    for batch in batches:
        both = [*batch.weight(), *measured(batch)]
        found.append(torch.stack(torch._foreach_norm(both, 2, dtype=dtype)).view(2, -1))
        layers += batch.layers
    norms = torch.cat(found, dim=1)
    if layers == list(range(len(bucket.layout.layers))):
        return norms
    places: list[list[int]] = [[] for _ in bucket.layout.layers]
    for place, layer in enumerate(layers):
        places[layer].append(place)
    # (To index by a list of the host's would make it wait for a GPU.)
    pieces, nothing = norms.unbind(1), norms.new_zeros(2)
    whole = [
        torch.linalg.vector_norm(torch.stack([pieces[i] for i in its]), dim=0) if its else nothing for its in places
    ]
    return torch.stack(whole, dim=1) if whole else norms
