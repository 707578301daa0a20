"""What an optimizer hands to a backend: tensors of one kind, their layout, and numbers; no parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_scale.optim.layout import Layout
from lightning_scale.optim.state.moments import Moment, WholeMoment


class Way(Enum):
    """Which implementation takes a bucket's step. The plain one is the truth that the others are held to."""

    PLAIN = "plain torch operations"
    TRITON = "Triton kernels"
    COMPILED = "torch.compile for CPUs"


class IncompleteStep(RuntimeError):
    """A step that has left some weights as they were; the parameters are no longer of one step."""


@dataclass(frozen=True)
class Guard:
    """What all gradients of a step together decide. Nothing here is on the host, so that no step waits for the device.

    Args:
        finite: 0-d bool, False where the step must leave weights and state as they are; ``None``: not tested.
        clip: 0-d factor (at most 1) for all gradients (``max_grad_norm``); ``None``: not clipped.
    """

    finite: Tensor | None = None
    clip: Tensor | None = None


class LayerNorms(NamedTuple):
    """Of each layer of a bucket, 1-D tensors of length ``len(layout.layers)``."""

    weight: Tensor
    update: Tensor
    ratio: Tensor


@dataclass(frozen=True)
class FirstPass:
    """What is known of a bucket before its ratios, and how its step is finished with them.

    Args:
        norms: [2, layers] float64: this rank's share of ‖w‖, and of the norm that the ratio divides by.
        second: Takes the layers' ratios (1-D, in compute dtype) and finishes the step.
    """

    norms: Tensor
    second: Callable[[Tensor], None]


class LayerwiseBucket(Protocol):
    """What all buckets have whose step is scaled layer by layer."""

    layout: Layout

    place: int
    """Which memory its updates wait in between the two passes."""

    @property
    def compute(self) -> torch.dtype:
        """What steps are computed in."""


@dataclass(frozen=True)
class TrustRatio:
    """How a layer's ratio is made of its norms.

    Args:
        adapt: For each layer, whether it takes a ratio of its own (1 otherwise); 1-D bool tensor on the bucket's device.
        weight_norm_clip: φ's bounds on the weight norm.
        clip: Bounds on the ratio.
    """

    adapt: Tensor
    weight_norm_clip: tuple[float, float] | None
    clip: tuple[float, float] | None


@dataclass
class Bucket:
    """Local tensors of one parameter group, device and compute dtype (float32, or float64 for float64 parameters).

    ``weights`` are what the step is computed on, of compute dtype: the parameters themselves, or float32 copies of
    lower-precision ones (``params``, parallel to ``weights``), into which the result is then rounded.
    """

    layout: Layout
    params: list[Tensor]
    weights: list[Tensor]
    grads: list[Tensor]
    """In compute dtype, negated where the step goes uphill; may be the parameters' own ``.grad``: read only."""
    lr: float | Tensor
    weight_decay: list[float]
    """Of each layer."""
    trust: TrustRatio
    way: Way = Way.PLAIN
    """Other ways take weights and gradients as they are, not converted."""
    maximize: bool = False
    """Of buckets that go another way than the plain one, whose gradients are not negated: step uphill."""
    place: int = 0
    """Which memory its updates wait in between the two passes."""

    @property
    def compute(self) -> torch.dtype:
        """What steps are computed in."""
        return torch.promote_types(self.weights[0].dtype, torch.float32)


@dataclass
class LambBucket(Bucket):
    """LAMB's: ``steps`` are 0-d float32 tensors, one per local tensor; moments have the weights' shapes."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    bias_correction: bool = True
    steps: list[Tensor] = field(default_factory=list)
    exp_avg: list[Tensor] = field(default_factory=list)
    exp_avg_sq: list[Tensor] = field(default_factory=list)


@dataclass
class LarsBucket(Bucket):
    """LARS': ``momentum_buffer`` has the weights' shapes, and is empty where momentum is 0."""

    momentum: float = 0.9
    trust_coefficient: float = 0.001
    eps: float = 1e-8
    nesterov: bool = False
    lr_in_momentum: bool = True
    momentum_norm: bool = False
    """``trust_norm="momentum"``."""
    momentum_buffer: list[Tensor] = field(default_factory=list)
    norms: Tensor | None = None
    """[2, L] float64, where the look at all gradients has found them: this rank's own ‖w‖ and ‖g‖, before any clip."""


@dataclass
class CodedBucket:
    """Local tensors of one parameter group, device and compute dtype (float32, or float64 for float64 parameters)."""

    layout: Layout
    params: list[Tensor]
    weights: list[Tensor]
    """What the step is computed on: the parameters themselves, of any dtype, or their float32 master copies."""
    grads: list[Tensor]
    """The parameters' own, of any dtype and memory format: read only."""
    compute: torch.dtype
    maximize: bool
    lr: Tensor
    """0-d, in compute dtype, on the bucket's device."""
    weight_decay: list[float]
    """Of each layer."""
    way: Way = field(default=Way.PLAIN, kw_only=True)
    """For the Triton kernels moments are in ``whole``, by their keys, and not in segments."""
    whole: dict[str, WholeMoment] = field(default_factory=dict, kw_only=True)
    place: int = field(default=0, kw_only=True)
    """Which memory its updates wait in between the two passes."""

    @property
    def device(self) -> torch.device:
        return self.lr.device


@dataclass
class CodedAdamBucket(CodedBucket):
    """With Adam's moments, one of each kind a segment; ``steps`` are 0-d float32 tensors, one a local tensor."""

    betas: tuple[float, float]
    eps: float
    bias_correction: bool
    steps: list[Tensor]
    exp_avg: list[Moment]
    exp_avg_sq: list[Moment]


@dataclass
class CodedLambBucket(CodedAdamBucket):
    """LAMB's."""

    trust: TrustRatio


@dataclass
class CodedLarsBucket(CodedBucket):
    """LARS'; ``momentum_buffer`` is empty where momentum is 0."""

    trust: TrustRatio
    momentum: float
    trust_coefficient: float
    eps: float
    nesterov: bool
    lr_in_momentum: bool
    momentum_norm: bool
    momentum_buffer: list[Moment]
    norms: Tensor | None = field(default=None, kw_only=True)
    """[2, L] float64, where the look at all gradients has found them: this rank's own ‖w‖ and ‖g‖, before any clip."""


@dataclass
class CodedSgdBucket(CodedBucket):
    """SGD's; ``momentum_buffer`` and ``steps`` (how many gradients it has had) are empty where momentum is 0."""

    momentum: float
    dampening: float
    nesterov: bool
    steps: list[Tensor]
    momentum_buffer: list[Moment]
