"""The optimizers' steps, over buckets: each goes to its backend, which is imported where it is used first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import Backend, Bucket, FirstPass, Guard, IncompleteStep, LayerNorms
from lightning_scale.optim.backends.norms import lamb_ratio, lars_ratio, over_ranks
from lightning_scale.optim.layout import Layout

_FOLDERS = {Backend.REFERENCE: "reference", Backend.CPU: "cpu", Backend.TRITON: "triton"}


def lamb(buckets: Sequence[Bucket], guard: Guard) -> list[LayerNorms]:
    """One LAMB step on every bucket, in place; see `two_passes` for what is returned."""
    return two_passes(buckets, guard, "lamb", lamb_ratio)


def lars(buckets: Sequence[Bucket], guard: Guard) -> list[LayerNorms]:
    """One LARS step on every bucket, in place; see `two_passes` for what is returned."""
    return two_passes(buckets, guard, "lars", lars_ratio)


def adamw(buckets: Sequence[Bucket], guard: Guard) -> None:
    """One AdamW step on every bucket, in place."""
    one_pass(buckets, guard, "adamw")


def sgd(buckets: Sequence[Bucket], guard: Guard) -> None:
    """One SGD step on every bucket, in place."""
    one_pass(buckets, guard, "sgd")


def _step(algorithm: str, bucket: Bucket) -> Callable[[Bucket, Guard], Any]:
    """The function of the bucket's backend."""
    module = import_module(f"lightning_scale.optim.backends.{_FOLDERS[bucket.backend]}.{algorithm}")
    # Triton's kernels for moments in 8 bits are others.
    quantized = bucket.backend is Backend.TRITON and bucket.in_order
    found: Callable[[Bucket, Guard], Any] = getattr(module, f"{algorithm}8bit" if quantized else algorithm)
    return found


def _is_skipped(bucket: Bucket, guard: Guard) -> bool:
    """Whether a step on a CPU, whose kernels do not test it, is left out; to look costs nothing there."""
    return bucket.backend is Backend.CPU and guard.finite is not None and not bool(guard.finite)


def _nothing(bucket: Bucket) -> FirstPass:
    """Of a step that is left out; other ranks wait for its norms."""
    return FirstPass(torch.zeros(2, len(bucket.layout.layers), dtype=torch.float64, device="cpu"), lambda ratios: None)


def one_pass(buckets: Sequence[Bucket], guard: Guard, algorithm: str) -> None:
    """One step on every bucket, in place, where no weight waits for a layer's norms."""
    for bucket in buckets:
        if not _is_skipped(bucket, guard):
            _step(algorithm, bucket)(bucket, guard)


def two_passes(
    buckets: Sequence[Bucket], guard: Guard, algorithm: str, ratio: Callable[[Bucket, Tensor, Tensor], Tensor]
) -> list[LayerNorms]:
    """One layer-wise step on every bucket, in place, with at most one collective.

    A backend measures a bucket, and says how to finish its step; or it has taken the whole step, where no other rank holds a
    share of the layers.

    Args:
        buckets: What to update.
        guard: The clip and the non-finite test of this step.
        algorithm: Which.
        ratio: Of each layer, from its two norms over all ranks.

    Returns:
        Norms and ratios of each bucket's layers, in its compute dtype (inf where a norm itself is beyond it).
    """
    # All first passes come before the collective, and all second ones after it.
    for place, bucket in enumerate(b for b in buckets if b.layout.all_reduce is not None):
        bucket.place = place
    passes = [
        _nothing(bucket) if _is_skipped(bucket, guard) else _step(algorithm, bucket)(bucket, guard)
        for bucket in buckets
    ]
    halves = [(bucket, p) for bucket, p in zip(buckets, passes, strict=True) if isinstance(p, FirstPass)]
    norms = iter(over_ranks([(bucket.layout, p.norms.view(-1)) for bucket, p in halves]))
    return [
        _finished(bucket, p, next(norms), ratio) if isinstance(p, FirstPass) else p
        for bucket, p in zip(buckets, passes, strict=True)
    ]


def _finished(
    bucket: Bucket, first: FirstPass, norms: Tensor, ratio: Callable[[Bucket, Tensor, Tensor], Tensor]
) -> LayerNorms:
    """The second pass, with the ratios that follow from the norms over all ranks (1-D: of each layer one, then the other)."""
    weight_norm, other_norm = norms.to(bucket.compute).view(2, -1).unbind()
    ratios = ratio(bucket, weight_norm, other_norm)
    first.second(ratios)
    return LayerNorms(weight_norm, other_norm, ratios)


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
