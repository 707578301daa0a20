"""Per-layer numbers brought to the layers' segments, and the last write of a step. Plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket
from lightning_scale.optim.backends.device import layers_of_segments
from lightning_scale.optim.layout import Layout


def scale_layers(layout: Layout, tensors: list[Tensor], per_layer: Tensor) -> None:
    """Multiply each layer's elements by its number of a 1-D tensor, in place; padding is left as it is."""
    if layout.segments:
        torch._foreach_mul_(layout.views(tensors), _per_segment(layout, per_layer))


def _per_segment(layout: Layout, per_layer: Tensor) -> tuple[Tensor, ...]:
    """A 1-D tensor of one number a layer as one 0-d tensor a segment."""
    if layout.whole:
        return per_layer.unbind()
    return per_layer[layers_of_segments(layout, per_layer.device)].unbind()


def add_weight_decay(bucket: Bucket, update: list[Tensor]) -> None:
    """``update += λ·w``, each layer with its own λ, in place."""
    pairs = list(zip(bucket.layout.views(update), bucket.layout.views(bucket.weights), strict=True))
    for decay in sorted(set(bucket.weight_decay) - {0.0}):
        chosen = [
            pair
            for pair, segment in zip(pairs, bucket.layout.segments, strict=True)
            if bucket.weight_decay[segment.layer] == decay
        ]
        torch._foreach_add_([u for u, _ in chosen], [w for _, w in chosen], alpha=decay)


def apply(bucket: Bucket, step: list[Tensor]) -> None:
    """``w -= step``, and round the result into parameters of lower precision."""
    torch._foreach_sub_(bucket.weights, step)
    rounded = [(p, w) for p, w in zip(bucket.params, bucket.weights, strict=True) if p is not w]
    if rounded:
        torch._foreach_copy_([p for p, _ in rounded], [w for _, w in rounded])
