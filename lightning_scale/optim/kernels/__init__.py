"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here.

Triton and torch.compile are imported only where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_scale.optim.kernels import reference_lamb, reference_lars
from lightning_scale.optim.kernels.eight_bit import (
    reference_adamw,
    reference_sgd,
)
from lightning_scale.optim.kernels.eight_bit import (
    reference_lamb as reference_lamb8bit,
)
from lightning_scale.optim.kernels.eight_bit import (
    reference_lars as reference_lars8bit,
)
from lightning_scale.optim.kernels.eight_bit.work import (
    CodedAdamBucket,
    CodedLambBucket,
    CodedLarsBucket,
    CodedSgdBucket,
)
from lightning_scale.optim.kernels.ratios import lamb_ratio, lars_ratio
from lightning_scale.optim.kernels.two_passes import two_passes
from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.kernels.work import FirstPass, Guard, LambBucket, LarsBucket, LayerNorms

__all__ = ["adamw8bit", "lamb", "lamb8bit", "lars", "lars8bit", "sgd8bit"]


def lamb(buckets: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`, and `two_passes` for what is returned."""
    return two_passes(buckets, guard, _lamb, lamb_ratio)


def lars(buckets: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`, and `two_passes` for what is returned."""
    return two_passes(buckets, guard, _lars, lars_ratio)


def lamb8bit(buckets: Sequence[CodedLambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step with 8-bit moments; see `eight_bit.reference_lamb.lamb`."""
    return two_passes(buckets, guard, _lamb8bit, lamb_ratio)


def lars8bit(buckets: Sequence[CodedLarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step with an 8-bit momentum; see `eight_bit.reference_lars.lars`."""
    return two_passes(buckets, guard, _lars8bit, lars_ratio)


def adamw8bit(buckets: Sequence[CodedAdamBucket], guard: Guard) -> None:
    """One AdamW step with 8-bit moments; see `eight_bit.reference_adamw.adamw`."""
    for bucket in buckets:
        _adamw8bit(bucket, guard)


def sgd8bit(buckets: Sequence[CodedSgdBucket], guard: Guard) -> None:
    """One SGD step with an 8-bit momentum; see `eight_bit.reference_sgd.sgd`."""
    for bucket in buckets:
        _sgd8bit(bucket, guard)


def _lamb(bucket: LambBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.lamb import lamb

        return lamb(bucket, guard)
    return reference_lamb.lamb(bucket, guard)


def _lars(bucket: LarsBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.lars import lars

        return lars(bucket, guard)
    return reference_lars.lars(bucket, guard)


def _lamb8bit(bucket: CodedLambBucket, guard: Guard) -> FirstPass:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.lamb8bit import lamb8bit

        return lamb8bit(bucket, guard)
    return reference_lamb8bit.lamb(bucket, guard)


def _lars8bit(bucket: CodedLarsBucket, guard: Guard) -> FirstPass:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.lars8bit import lars8bit

        return lars8bit(bucket, guard)
    return reference_lars8bit.lars(bucket, guard)


def _adamw8bit(bucket: CodedAdamBucket, guard: Guard) -> None:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.adamw8bit import adamw8bit

        return adamw8bit(bucket, guard)
    return reference_adamw.adamw(bucket, guard)


def _sgd8bit(bucket: CodedSgdBucket, guard: Guard) -> None:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.kernels.fused.sgd8bit import sgd8bit

        return sgd8bit(bucket, guard)
    return reference_sgd.sgd(bucket, guard)
