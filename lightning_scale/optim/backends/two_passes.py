"""A layer-wise step: each implementation measures, the ratios are made in one place, each implementation applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import FirstPass, Guard, IncompleteStep, LayerNorms, LayerwiseBucket
from lightning_scale.optim.backends.norms import over_ranks
from lightning_scale.optim.layout import Layout

BucketT = TypeVar("BucketT", bound=LayerwiseBucket)


def two_passes(
    buckets: Sequence[BucketT],
    guard: Guard,
    first_pass: Callable[[BucketT, Guard], FirstPass | LayerNorms],
    ratio: Callable[[BucketT, Tensor, Tensor], Tensor],
) -> list[LayerNorms]:
    """One step on every bucket, in place, with at most one collective.

    Args:
        buckets: What to update.
        guard: The clip and the non-finite test of this step.
        first_pass: Measures a bucket, and says how to finish its step; or has taken the whole step, where no other rank
            holds a share of the layers.
        ratio: Of each layer, from its two norms over all ranks.

    Returns:
        Norms and ratios of each bucket's layers, in its compute dtype (inf where a norm itself is beyond it).
    """
    # All first passes come before the collective, and all second ones after it.
    for place, bucket in enumerate(b for b in buckets if b.layout.all_reduce is not None):
        bucket.place = place
    passes = [first_pass(bucket, guard) for bucket in buckets]
    halves = [(bucket, p) for bucket, p in zip(buckets, passes, strict=True) if isinstance(p, FirstPass)]
    norms = iter(over_ranks([(bucket.layout, p.norms.view(-1)) for bucket, p in halves]))
    return [
        finished(bucket, p, next(norms), ratio) if isinstance(p, FirstPass) else p
        for bucket, p in zip(buckets, passes, strict=True)
    ]


def refuse_incomplete(layout: Layout) -> None:
    """Raises IncompleteStep where a step on this layout, as far as its device has come, has left weights as they were."""
    for device, flag in layout.gave_up.items():
        if number := int(flag):
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # other programs may be about to set the flag, too
            raise IncompleteStep(
                f"a step on {device} is incomplete: in {layout.layers[number - 1].name!r} the Triton kernel's second pass gave up"
                " waiting for the trust ratio that the first one makes, so its weights, and perhaps others', were not moved. Go"
                " on from the last checkpoint with fused=False, and report this with the device's name and the versions of"
                " torch and Triton."
            )


def finished(
    bucket: BucketT, first: FirstPass, norms: Tensor, ratio: Callable[[BucketT, Tensor, Tensor], Tensor]
) -> LayerNorms:
    """The second pass, with the ratios that follow from the norms over all ranks (1-D: of each layer one, then the other)."""
    weight_norm, other_norm = norms.to(bucket.compute).view(2, -1).unbind()
    ratios = ratio(bucket, weight_norm, other_norm)
    first.second(ratios)
    return LayerNorms(weight_norm, other_norm, ratios)
