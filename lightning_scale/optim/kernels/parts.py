"""A bucket in parts that a cache holds, each with both passes of its step; and a bucket as the plain kernels take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Bucket, FirstPass, Guard, LayerNorms, Way
from lightning_scale.optim.backends.two_passes import finished
from lightning_scale.optim.layout import Layout, Segment

# Elements of a group of layers: more of them leave the cache before the second pass, with fewer the small operations
# between two passes count.
PART = 1 << 22
# Layers of no more elements are stepped together before the others, for the compiled kernels copy them into one buffer.
SMALL = 1 << 14
# Elements of a group, however small the largest layer is: 2 MB of updates.
LEAST = 1 << 19

AnyBucket = TypeVar("AnyBucket", bound=Any)
BucketT = TypeVar("BucketT", bound=Bucket)


def in_parts(
    bucket: AnyBucket,
    guard: Guard,
    first: Callable[[AnyBucket, Guard], Callable[[], FirstPass | LayerNorms] | None],
    ratios: Callable[[AnyBucket, Tensor, Tensor], Tensor],
    keeps_updates: bool = True,
    alone: Callable[[int], bool] | None = None,
) -> LayerNorms | FirstPass | None:
    """A layer-wise step, part by part; the first pass of all of it where other ranks hold a share of the layers.

    Args:
        bucket: What to update.
        guard: The clip and the non-finite test of this step.
        first: Makes a first pass, or a whole step, ready to run; ``None`` where it cannot be taken, and then for every
            part of the bucket.
        ratios: A bucket's ratios from its two norms.
        keeps_updates: Whether what the first pass leaves for the second grows with the bucket; where not, no parts are
            needed.
        alone: Says of a number of elements whether `first` takes a layer of so many by itself; all of these are one part.
    """
    parts = parts_of(bucket, alone) if keeps_updates and bucket.layout.all_reduce is None else [bucket]
    ready = [(part, first(part, guard)) for part in parts]
    results: list[LayerNorms] = []
    for part, begin in ready:
        if begin is None:
            return None
        passed = begin()
        if isinstance(passed, LayerNorms):
            results.append(passed)
            continue
        if bucket.layout.all_reduce is not None:
            return passed
        results.append(finished(part, passed, passed.norms.view(-1), ratios))
    if len(results) == 1:
        return results[0]
    back = _back(bucket.layout, alone)
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


def parts_of(bucket: AnyBucket, alone: Callable[[int], bool] | None = None) -> list[AnyBucket]:
    """Whole layers in groups, those that step ``alone`` in the last; one part where the layers do not lie whole."""
    found = []
    for chosen, layout in _cut(bucket.layout, alone):
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


def _cut(layout: Layout, alone: Callable[[int], bool] | None) -> list[tuple[tuple[int, ...], Layout]]:
    """Groups of layers of at most `PART` elements, and of no more than the largest has, small layers first; with layouts.

    Args:
        layout: Of the layers.
        alone: See `in_parts`.
    """
    if not layout.whole or layout.all_reduce is not None:
        return [(tuple(range(len(layout.layers))), layout)]
    key = ("parts", alone)
    if key not in layout.cache:
        groups: list[list[int]] = []
        apart = [alone is not None and alone(layer.numel) for layer in layout.layers]
        last = [i for i, by_itself in enumerate(apart) if by_itself]
        grouped = [i for i, by_itself in enumerate(apart) if not by_itself]
        # As the updates of a whole group wait.
        held, most = 0, min(PART, max(LEAST, *(layer.numel for layer in layout.layers)))
        for i in sorted(grouped, key=lambda i: layout.layers[i].numel > SMALL):
            numel = layout.layers[i].numel
            if not groups or held + numel > most:
                groups.append([])
                held = 0
            groups[-1].append(i)
            held += numel
        groups += [last] if last else []
        layout.cache[key] = [(tuple(group), _of(layout, group)) for group in groups]
    found: list[tuple[tuple[int, ...], Layout]] = layout.cache[key]
    return found


def _back(layout: Layout, alone: Callable[[int], bool] | None) -> Tensor:
    """Where in the parts, one after another, each layer stands."""
    key = ("parts_back", alone)
    if key not in layout.cache:
        layout.cache[key] = torch.tensor([i for chosen, _ in _cut(layout, alone) for i in chosen]).argsort()
    back: Tensor = layout.cache[key]
    return back


def _of(layout: Layout, chosen: Sequence[int]) -> Layout:
    return Layout(
        layers=tuple(layout.layers[i] for i in chosen),
        segments=tuple(Segment(n, n, 0, 0, layout.segments[i].length) for n, i in enumerate(chosen)),
        tensor_numels=tuple(layout.tensor_numels[i] for i in chosen),
    )
