"""A layer-wise step: each implementation measures, the ratios are made in one place, each implementation applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from lightning_scale.optim.kernels.norms import over_ranks
from lightning_scale.optim.kernels.work import FirstPass, Guard, LayerNorms, LayerwiseBucket

BucketT = TypeVar("BucketT", bound=LayerwiseBucket)


def two_passes(
    buckets: Sequence[BucketT],
    guard: Guard,
    first_pass: Callable[[BucketT, Guard], FirstPass],
    ratio: Callable[[BucketT, Tensor, Tensor], Tensor],
) -> list[LayerNorms]:
    """One step on every bucket, in place, with at most one collective.

    Args:
        buckets: What to update.
        guard: The clip and the non-finite test of this step.
        first_pass: Measures a bucket, and says how to finish its step.
        ratio: Of each layer, from its two norms over all ranks.

    Returns:
        Norms and ratios of each bucket's layers, in its compute dtype (inf where a norm itself is beyond it).
    """
    passes = [first_pass(bucket, guard) for bucket in buckets]
    norms = over_ranks([(bucket.layout, p.norms.view(-1)) for bucket, p in zip(buckets, passes, strict=True)])
    results = []
    for bucket, first, both in zip(buckets, passes, norms, strict=True):
        weight_norm, other_norm = both.to(bucket.compute).view(2, -1).unbind()
        ratios = ratio(bucket, weight_norm, other_norm)
        first.second(ratios)
        results.append(LayerNorms(weight_norm, other_norm, ratios))
    return results
