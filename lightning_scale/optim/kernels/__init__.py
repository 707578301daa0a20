"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lightning_scale.optim.kernels import reference_lamb, reference_lars
from lightning_scale.optim.kernels.choice import check_fused, runs_fused
from lightning_scale.optim.kernels.work import Bucket, Guard, LambBucket, LarsBucket, LayerNorms

__all__ = ["check_fused", "lamb", "lars", "runs_fused"]

BucketT = TypeVar("BucketT", bound=Bucket)


def lamb(buckets: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`."""

    def fused(chosen: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lamb import lamb

        return lamb(chosen, guard)

    return _each_its_way(buckets, guard, reference_lamb.lamb, fused)


def lars(buckets: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`."""

    def fused(chosen: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lars import lars

        return lars(chosen, guard)

    return _each_its_way(buckets, guard, reference_lars.lars, fused)


def _each_its_way(
    buckets: Sequence[BucketT],
    guard: Guard,
    plain: Callable[[Sequence[BucketT], Guard], list[LayerNorms]],
    fused: Callable[[Sequence[BucketT], Guard], list[LayerNorms]],
) -> list[LayerNorms]:
    """Norms in the buckets' order."""
    norms: dict[int, LayerNorms] = {}
    for way, run in ((False, plain), (True, fused)):
        places = [i for i, bucket in enumerate(buckets) if bucket.fused == way]
        if places:
            norms.update(zip(places, run([buckets[i] for i in places], guard), strict=True))
    return [norms[i] for i in range(len(buckets))]
