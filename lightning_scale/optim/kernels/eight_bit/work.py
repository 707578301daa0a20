"""What the 8-bit optimizers hand to their kernels: tensors as they are, moments per segment, and numbers.

Nothing here is a float32 copy of a whole tensor: kernels read, convert and write piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import Moment
from lightning_scale.optim.kernels.work import TrustRatio
from lightning_scale.optim.layout import Layout


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
    compiled: bool
    """For the compiled CPU kernels."""

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
    norms: Tensor | None
    """[2, L] float64, where the look at all gradients has found them: this rank's own ‖w‖ and ‖g‖, before any clip."""


@dataclass
class CodedSgdBucket(CodedBucket):
    """SGD's; ``momentum_buffer`` and ``steps`` (how many gradients it has had) are empty where momentum is 0."""

    momentum: float
    dampening: float
    nesterov: bool
    steps: list[Tensor]
    momentum_buffer: list[Moment]
