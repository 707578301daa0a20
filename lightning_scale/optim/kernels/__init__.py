"""The optimizers' arithmetic, over buckets of local tensors; which implementation runs is decided here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from lightning_scale.optim.kernels import reference_lamb, reference_lars
from lightning_scale.optim.kernels.choice import check_fused, runs_compiled, runs_fused
from lightning_scale.optim.kernels.norms import trust_ratios
from lightning_scale.optim.kernels.parts import as_plain, in_two_passes
from lightning_scale.optim.kernels.work import Bucket, FirstPass, Guard, LambBucket, LarsBucket, LayerNorms

__all__ = ["check_fused", "lamb", "lars", "look", "runs_compiled", "runs_fused"]

BucketT = TypeVar("BucketT", bound=Bucket)


def lamb(buckets: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `reference_lamb.lamb`."""

    def fused(chosen: Sequence[LambBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lamb import lamb

        return lamb(chosen, guard)

    def compiled(bucket: LambBucket, guard: Guard) -> FirstPass | None:
        from lightning_scale.optim.kernels.compiled import lamb

        return lamb(bucket, guard)

    return _each_its_way(buckets, guard, reference_lamb.lamb, fused, compiled, _lamb_ratios)


def look(gathered: Any) -> Tensor | None:
    """[2, L] float64: ‖w‖ and ‖g‖ of contiguous CPU tensors from one read; ``None`` where that cannot be compiled.

    Args:
        gathered: With ``layout``, ``weights`` and ``grads``.
    """
    from lightning_scale.optim.kernels.compiled import look

    return look(gathered)


def _lamb_ratios(bucket: LambBucket, w: Tensor, u: Tensor) -> Tensor:
    return trust_ratios(w, u, bucket.trust, u)


def lars(buckets: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `reference_lars.lars`."""

    def fused(chosen: Sequence[LarsBucket], guard: Guard) -> list[LayerNorms]:
        from lightning_scale.optim.kernels.fused.lars import lars

        return lars(chosen, guard)

    def compiled(bucket: LarsBucket, guard: Guard) -> FirstPass | None:
        from lightning_scale.optim.kernels.compiled import lars

        return lars(bucket, guard)

    return _each_its_way(
        buckets, guard, reference_lars.lars, fused, compiled, reference_lars.ratios, lambda b: b.momentum_norm
    )


def _each_its_way(
    buckets: Sequence[BucketT],
    guard: Guard,
    plain: Callable[[Sequence[BucketT], Guard], list[LayerNorms]],
    fused: Callable[[Sequence[BucketT], Guard], list[LayerNorms]],
    compiled: Callable[[BucketT, Guard], FirstPass | None],
    ratios: Callable[[BucketT, Tensor, Tensor], Tensor],
    keeps_updates: Callable[[BucketT], bool] = lambda bucket: True,
) -> list[LayerNorms]:
    """Norms in the buckets' order."""
    norms: dict[int, LayerNorms] = {}
    rest = list(buckets)
    for i, bucket in enumerate(buckets):
        if bucket.compiled:
            found = in_two_passes(bucket, guard, compiled, ratios, keeps_updates(bucket))
            if found is not None:
                norms[i] = found
            else:
                rest[i] = as_plain(bucket)
    for way, run in ((False, plain), (True, fused)):
        places = [i for i, bucket in enumerate(rest) if i not in norms and bucket.fused == way]
        if places:
            norms.update(zip(places, run([rest[i] for i in places], guard), strict=True))
    return [norms[i] for i in range(len(buckets))]
