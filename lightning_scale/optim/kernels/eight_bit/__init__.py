"""The 8-bit optimizers' arithmetic, piece by piece; which implementation runs is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from lightning_scale.optim.kernels.eight_bit import reference_adamw, reference_lamb, reference_lars, reference_sgd
from lightning_scale.optim.kernels.eight_bit.work import (
    CodedAdamBucket,
    CodedBucket,
    CodedLambBucket,
    CodedLarsBucket,
    CodedSgdBucket,
)
from lightning_scale.optim.kernels.norms import trust_ratios
from lightning_scale.optim.kernels.parts import in_two_passes, parts
from lightning_scale.optim.kernels.work import FirstPass, Guard, LayerNorms

__all__ = ["adamw", "lamb", "lars", "sgd"]

BucketT = TypeVar("BucketT", bound=CodedBucket)


def lamb(buckets: Sequence[CodedLambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`."""

    def compiled(bucket: CodedLambBucket, guard: Guard) -> FirstPass | None:
        from lightning_scale.optim.kernels.compiled import lamb8bit

        return lamb8bit(bucket, guard)

    return _layerwise(buckets, guard, reference_lamb.lamb, compiled, lambda b, w, u: trust_ratios(w, u, b.trust, u))


def lars(buckets: Sequence[CodedLarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`."""

    def compiled(bucket: CodedLarsBucket, guard: Guard) -> FirstPass | None:
        from lightning_scale.optim.kernels.compiled import lars8bit

        return lars8bit(bucket, guard)

    return _layerwise(buckets, guard, reference_lars.lars, compiled, reference_lars.ratios)


def adamw(buckets: Sequence[CodedAdamBucket], guard: Guard) -> None:
    """One AdamW step on every bucket, in place; see `reference_adamw.adamw`."""

    def compiled(bucket: CodedAdamBucket, guard: Guard) -> bool:
        from lightning_scale.optim.kernels.compiled import adamw8bit

        return adamw8bit(bucket, guard)

    _in_one_pass(buckets, guard, reference_adamw.adamw, compiled)


def sgd(buckets: Sequence[CodedSgdBucket], guard: Guard) -> None:
    """One SGD step on every bucket, in place; see `reference_sgd.sgd`."""

    def compiled(bucket: CodedSgdBucket, guard: Guard) -> bool:
        from lightning_scale.optim.kernels.compiled import sgd8bit

        return sgd8bit(bucket, guard)

    _in_one_pass(buckets, guard, reference_sgd.sgd, compiled)


def _layerwise(
    buckets: Sequence[BucketT],
    guard: Guard,
    plain: Callable[[Sequence[BucketT], Guard], list[LayerNorms]],
    compiled: Callable[[BucketT, Guard], FirstPass | None],
    ratios: Callable[[BucketT, Tensor, Tensor], Tensor],
) -> list[LayerNorms]:
    found = [in_two_passes(bucket, guard, compiled, ratios) if bucket.compiled else None for bucket in buckets]
    rest = iter(plain([bucket for bucket, norms in zip(buckets, found, strict=True) if norms is None], guard))
    return [norms if norms is not None else next(rest) for norms in found]


def _in_one_pass(
    buckets: Sequence[BucketT],
    guard: Guard,
    plain: Callable[[Sequence[BucketT], Guard], None],
    compiled: Callable[[BucketT, Guard], bool],
) -> None:
    for bucket in buckets:  # the first part says whether all can be taken
        if not (bucket.compiled and all(compiled(part, guard) for part in parts(bucket))):
            plain([bucket], guard)
