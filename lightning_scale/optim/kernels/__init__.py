"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_scale.optim.kernels import reference_lamb, reference_lars
from lightning_scale.optim.kernels.choice import check_fused, each_its_way, runs_fused
from lightning_scale.optim.kernels.work import Guard, LambBucket, LarsBucket, LayerNorms

__all__ = ["check_fused", "lamb", "lars", "runs_fused"]


def lamb(buckets: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`."""

    def fused(chosen: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lamb import lamb

        return lamb(chosen, guard)

    return each_its_way(buckets, guard, reference_lamb.lamb, fused)


def lars(buckets: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`."""

    def fused(chosen: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lars import lars

        return lars(chosen, guard)

    return each_its_way(buckets, guard, reference_lars.lars, fused)
