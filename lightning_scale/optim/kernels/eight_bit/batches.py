"""Pieces that are stepped together, as lists for multi-tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.backends.bucket import CodedBucket, Guard
from lightning_scale.optim.kernels.eight_bit import pieces
from lightning_scale.optim.kernels.eight_bit.pieces import Piece, place
from lightning_scale.optim.kernels.masking import guarded_grads
from lightning_scale.optim.state.moments import CodedMoment, Moment, store


@dataclass(frozen=True)
class Batch:
    """Pieces of any layers of a bucket, and their places in memory: views, 1-D but for tensors that are not contiguous."""

    bucket: CodedBucket
    pieces: list[Piece]
    params: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]

    @property
    def layers(self) -> list[int]:
        """Of each piece."""
        return [piece.layer for piece in self.pieces]

    def weight(self) -> list[Tensor]:
        """The pieces' weights in compute dtype, 1-D: read only."""
        return _flat(self.weights, self.bucket.compute)

    def gradient(self, guard: Guard) -> list[Tensor]:
        """The pieces' gradients in compute dtype, 1-D, clipped, downhill, and zero on a non-finite step: read only."""
        grads = _flat(self.grads, self.bucket.compute)
        if self.bucket.maximize:
            grads = list(torch._foreach_neg(grads))
        return guarded_grads(grads, guard)

    def decayed_gradient(self, guard: Guard) -> list[Tensor]:
        """g + λw; the gradients themselves, read only, where nothing decays."""
        grads = self.gradient(guard)
        if any(self.bucket.weight_decay[layer] for layer in self.layers):
            grads = [grad.clone() for grad in grads]
            self.add_weight_decay(grads)
        return grads

    def add_weight_decay(self, tensors: list[Tensor]) -> None:
        """``tensors += λ·w``, each layer with its own λ, in place."""
        decays = [self.bucket.weight_decay[layer] for layer in self.layers]
        decayed = [i for i, decay in enumerate(decays) if decay]
        if decayed:
            weights = _flat([self.weights[i] for i in decayed], self.bucket.compute)
            torch._foreach_add_(
                [tensors[i] for i in decayed], torch._foreach_mul(weights, [decays[i] for i in decayed])
            )

    def set_weight(self, values: list[Tensor], guard: Guard) -> None:
        """Store new weights, and round them into parameters whose master copies they are."""
        finite = _finite_on(guard, self.bucket.device)
        _store(self.weights, values, finite)
        if self.params is not self.weights:
            _store(self.params, values, finite)

    def read(self, moments: Sequence[Moment]) -> list[Tensor]:
        """The pieces of a moment, 1-D: read only."""
        return [moments[piece.segment].part(piece.offset, piece.length).read() for piece in self.pieces]

    def write(self, moments: Sequence[Moment], values: list[Tensor], guard: Guard) -> None:
        """Store the pieces of a moment."""
        finite = _finite_on(guard, self.bucket.device)
        parts = [moments[piece.segment].part(piece.offset, piece.length) for piece in self.pieces]
        plain: list[tuple[Tensor, Tensor]] = []
        for part, new in zip(parts, values, strict=True):
            if isinstance(part, CodedMoment):
                part.write(new, finite)
            else:
                plain.append((part.values, new))
        _store([old for old, _ in plain], [new for _, new in plain], finite)


def batches(bucket: CodedBucket) -> list[Batch]:
    """The bucket's pieces in order, as many together as have the elements of the largest piece.

    A call of torch's takes longer than to step a small layer, so small layers share their calls.
    """
    together: list[list[Piece]] = []
    room = 0
    for piece in pieces.pieces(bucket):
        if piece.length > room:
            together.append([])
            room = pieces.LARGEST_PIECE
        together[-1].append(piece)
        room -= piece.length
    return [_batch(bucket, some) for some in together]


def _batch(bucket: CodedBucket, some: list[Piece]) -> Batch:
    def places(tensors: list[Tensor]) -> list[Tensor]:
        return [place(tensors[piece.tensor], piece) for piece in some]

    weights = places(bucket.weights)
    same = all(bucket.params[piece.tensor] is bucket.weights[piece.tensor] for piece in some)
    return Batch(bucket, some, weights if same else places(bucket.params), weights, places(bucket.grads))


def _finite_on(guard: Guard, device: torch.device) -> Tensor | None:
    """The guard's test on the device that is to be masked."""
    return None if guard.finite is None else guard.finite.to(device)


def _flat(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t if t.ndim == 1 and t.dtype is dtype else t.reshape(-1).to(dtype) for t in tensors]


def _store(targets: list[Tensor], values: list[Tensor], finite: Tensor | None) -> None:
    """As `store`, one after the other."""
    if finite is not None or any(t.ndim != 1 for t in targets):
        for target, value in zip(targets, values, strict=True):
            store(target, value, finite)
    elif targets:
        torch._foreach_copy_(targets, values)
