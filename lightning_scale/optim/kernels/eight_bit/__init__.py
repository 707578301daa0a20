"""The 8-bit optimizers' arithmetic, piece by piece; which implementation runs is decided here."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_scale.optim.kernels.choice import each_its_way
from lightning_scale.optim.kernels.eight_bit import reference_adamw, reference_lamb, reference_lars, reference_sgd
from lightning_scale.optim.kernels.eight_bit.norms import norms_over_ranks
from lightning_scale.optim.kernels.eight_bit.work import (
    CodedAdamBucket,
    CodedLambBucket,
    CodedLarsBucket,
    CodedSgdBucket,
)
from lightning_scale.optim.kernels.norms import trust_ratios
from lightning_scale.optim.kernels.work import Guard, LayerNorms

__all__ = ["adamw", "lamb", "lars", "sgd"]


def adamw(buckets: Sequence[CodedAdamBucket], guard: Guard) -> None:
    """One AdamW step on every bucket, in place; see `reference_adamw.adamw`."""
    reference_adamw.adamw([b for b in buckets if not b.fused], guard)
    for bucket in buckets:
        if bucket.fused:
            from lightning_scale.optim.kernels.fused.adamw8bit import adamw8bit

            adamw8bit(bucket, guard)


def sgd(buckets: Sequence[CodedSgdBucket], guard: Guard) -> None:
    """One SGD step on every bucket, in place; see `reference_sgd.sgd`."""
    reference_sgd.sgd([b for b in buckets if not b.fused], guard)
    for bucket in buckets:
        if bucket.fused:
            from lightning_scale.optim.kernels.fused.sgd8bit import sgd8bit

            sgd8bit(bucket, guard)


def lamb(buckets: Sequence[CodedLambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`."""

    def fused(chosen: Sequence[CodedLambBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lamb8bit import lamb8bit

        firsts = [lamb8bit(bucket, guard) for bucket in chosen]
        results = []
        norms = norms_over_ranks(chosen, [first.norms.reshape(-1) for first in firsts])
        for bucket, first, (w, u) in zip(chosen, firsts, norms, strict=True):
            ratio = trust_ratios(w, u, bucket.trust, u)
            first.second(ratio)
            results.append(LayerNorms(w, u, ratio))
        return results

    return each_its_way(buckets, guard, reference_lamb.lamb, fused)


def lars(buckets: Sequence[CodedLarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`."""

    def fused(chosen: Sequence[CodedLarsBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lars8bit import lars8bit

        firsts = [lars8bit(bucket, guard) for bucket in chosen]
        results = []
        norms = norms_over_ranks(chosen, [first.norms.reshape(-1) for first in firsts])
        for bucket, first, (w, n) in zip(chosen, firsts, norms, strict=True):
            ratio = reference_lars.ratios(bucket, w, n)
            first.second(ratio)
            results.append(LayerNorms(w, n, ratio))
        return results

    return each_its_way(buckets, guard, reference_lars.lars, fused)
