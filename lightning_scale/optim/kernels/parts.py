"""A bucket in parts that a cache holds, each with both passes of its step; and a bucket as the plain kernels take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_scale.optim.kernels.two_passes import finished
from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.kernels.work import Bucket, FirstPass, Guard, LayerNorms
from lightning_scale.optim.layout import Layout, Segment

# Elements of a group of layers: more of them leave the cache before the second pass, with fewer the small operations
# between two passes count.
PART = 1 << 22
# Layers of no more elements are stepped together before the others, for the compiled kernels copy them into one buffer.
SMALL = 1 << 14

AnyBucket = TypeVar("AnyBucket", bound=Any)
BucketT = TypeVar("BucketT", bound=Bucket)


def in_parts(
    bucket: AnyBucket,
    guard: Guard,
    first: Callable[[AnyBucket, Guard], Callable[[], FirstPass] | None],
    ratios: Callable[[AnyBucket, Tensor, Tensor], Tensor],
    keeps_updates: bool = True,
) -> LayerNorms | FirstPass | None:
    """A layer-wise step, part by part; the first pass of all of it where other ranks hold a share of the layers.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
        first: Makes a first pass ready to run; ``None`` where it cannot be taken, and then for every part of the bucket.
        ratios: A bucket's ratios from its two norms.
        keeps_updates: Whether what the first pass leaves for the second grows with the bucket; where not, no parts are
            needed.
    """
    parts = parts_of(bucket) if keeps_updates and bucket.layout.all_reduce is None else [bucket]
    ready = [(part, first(part, guard)) for part in parts]
    results: list[LayerNorms] = []
    for part, begin in ready:
        if begin is None:
            return None
        passed = begin()
        if bucket.layout.all_reduce is not None:
            return passed
        results.append(finished(part, passed, passed.norms.view(-1), ratios))
    if len(results) == 1:
        return results[0]
    back = _back(bucket.layout)
    return LayerNorms(*(torch.cat(values)[back] for values in zip(*results, strict=True)))


def as_plain(bucket: BucketT) -> BucketT:
    """A bucket of weights and gradients as they are, in compute dtype and downhill."""
    grads = [g.float() for g in bucket.grads]
    return replace(
        bucket,
        way=Way.PLAIN,
        maximize=False,
        weights=[w.float() for w in bucket.weights],
        grads=[-g for g in grads] if bucket.maximize else grads,
    )


def parts_of(bucket: AnyBucket) -> list[AnyBucket]:
    """Whole layers in groups; one part where the layers do not lie whole."""
    found = []
    for chosen, layout in _cut(bucket.layout):
        if layout is bucket.layout:
            return [bucket]
        changes: dict[str, Any] = {
            f.name: [getattr(bucket, f.name)[i] for i in chosen]
            for f in fields(bucket)
            if isinstance(getattr(bucket, f.name), list) and getattr(bucket, f.name)
        }
        if getattr(bucket, "norms", None) is not None:
            changes["norms"] = bucket.norms[:, list(chosen)]
        if hasattr(bucket, "trust"):
            changes["trust"] = replace(bucket.trust, adapt=bucket.trust.adapt[list(chosen)])
        found.append(replace(bucket, **changes, layout=layout))
    return found


def _cut(layout: Layout) -> list[tuple[tuple[int, ...], Layout]]:
    """Groups of layers of at most `PART` elements, and of no more than the largest has, small layers first; with layouts."""
    if not layout.whole or layout.all_reduce is not None:
        return [(tuple(range(len(layout.layers))), layout)]
    if "parts" not in layout.cache:
        groups: list[list[int]] = []
        held, most = 0, min(PART, max(layer.numel for layer in layout.layers))  # as u waits for all of a group
        for i in sorted(range(len(layout.layers)), key=lambda i: layout.layers[i].numel > SMALL):
            numel = layout.layers[i].numel
            if not groups or held + numel > most:
                groups.append([])
                held = 0
            groups[-1].append(i)
            held += numel
        layout.cache["parts"] = [(tuple(group), _of(layout, group)) for group in groups]
    found: list[tuple[tuple[int, ...], Layout]] = layout.cache["parts"]
    return found


def _back(layout: Layout) -> Tensor:
    """Where in the parts, one after another, each layer stands."""
    if "parts_back" not in layout.cache:
        layout.cache["parts_back"] = torch.tensor([i for chosen, _ in _cut(layout) for i in chosen]).argsort()
    back: Tensor = layout.cache["parts_back"]
    return back


def _of(layout: Layout, chosen: Sequence[int]) -> Layout:
    return Layout(
        layers=tuple(layout.layers[i] for i in chosen),
        segments=tuple(Segment(n, n, 0, 0, layout.segments[i].length) for n, i in enumerate(chosen)),
        tensor_numels=tuple(layout.tensor_numels[i] for i in chosen),
    )
