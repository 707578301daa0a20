"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here.

Triton and torch.compile are imported only where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_scale.optim.backends.bucket import (
    CodedAdamBucket,
    CodedLambBucket,
    CodedLarsBucket,
    CodedSgdBucket,
    FirstPass,
    Guard,
    LambBucket,
    LarsBucket,
    LayerNorms,
    Way,
)
from lightning_scale.optim.backends.ratios import lamb_ratio, lars_ratio
from lightning_scale.optim.backends.two_passes import two_passes
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
from lightning_scale.optim.kernels.parts import as_plain, in_parts, parts_of

__all__ = ["adamw8bit", "lamb", "lamb8bit", "lars", "lars8bit", "look", "sgd8bit"]


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


def look(gathered: Any, exact: bool) -> Tensor | None:
    """[2, L] float64: ‖w‖ and ‖g‖ of contiguous CPU tensors from one read; ``None`` where that cannot be compiled.

    Args:
        gathered: With ``layout``, ``weights`` and ``grads``.
        exact: Sum in float64, where every bit of the norms counts.
    """
    from lightning_scale.optim.kernels.compiled import look

    return look(gathered, exact)


def _lamb(bucket: LambBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.lamb import lamb

        return lamb(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        taken = in_parts(bucket, guard, compiled.lamb, lamb_ratio, alone=compiled.steps_alone)
        return reference_lamb.lamb(as_plain(bucket), guard) if taken is None else taken
    return reference_lamb.lamb(bucket, guard)


def _lars(bucket: LarsBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.lars import lars

        return lars(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        # Only the form on the momentum keeps updates between its passes.
        taken = in_parts(bucket, guard, compiled.lars, lars_ratio, bucket.momentum_norm, compiled.steps_alone)
        return reference_lars.lars(as_plain(bucket), guard) if taken is None else taken
    return reference_lars.lars(bucket, guard)


def _lamb8bit(bucket: CodedLambBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.lamb import lamb8bit

        return lamb8bit(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        taken = in_parts(bucket, guard, compiled.lamb8bit, lamb_ratio)
        if taken is not None:
            return taken
    return reference_lamb8bit.lamb(bucket, guard)


def _lars8bit(bucket: CodedLarsBucket, guard: Guard) -> FirstPass | LayerNorms:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.lars import lars8bit

        return lars8bit(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        taken = in_parts(bucket, guard, compiled.lars8bit, lars_ratio)
        if taken is not None:
            return taken
    return reference_lars8bit.lars(bucket, guard)


def _adamw8bit(bucket: CodedAdamBucket, guard: Guard) -> None:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.adamw import adamw8bit

        return adamw8bit(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        if all(compiled.adamw8bit(part, guard) for part in parts_of(bucket)):  # the first says whether all can be taken
            return None
    return reference_adamw.adamw(bucket, guard)


def _sgd8bit(bucket: CodedSgdBucket, guard: Guard) -> None:
    if bucket.way is Way.TRITON:
        from lightning_scale.optim.backends.triton.sgd import sgd8bit

        return sgd8bit(bucket, guard)
    if bucket.way is Way.COMPILED:
        from lightning_scale.optim.kernels import compiled

        if all(compiled.sgd8bit(part, guard) for part in parts_of(bucket)):
            return None
    return reference_sgd.sgd(bucket, guard)
