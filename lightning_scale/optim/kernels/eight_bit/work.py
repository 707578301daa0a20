"""What the 8-bit optimizers hand to their kernels: tensors as they are, moments per segment, and numbers.

Nothing here is a float32 copy of a whole tensor: kernels read, convert and write piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_scale.optim.kernels.eight_bit.moment import Moment
from lightning_scale.optim.kernels.way import Way
from lightning_scale.optim.kernels.work import TrustRatio
from lightning_scale.optim.layout import LayerInfo, Layout


@dataclass(frozen=True)
class WholeMoment:
    """One kind of moment as it stands in the state, one tensor or none for each local tensor: what Triton kernels take."""

    values: list[Tensor | None]
    """Codes; of a local tensor of small layers alone their elements, in compute dtype."""
    scales: list[Tensor | None]
    """The blocks' absmax."""
    small: list[Tensor | None]
    """The small layers' elements beside large ones."""
    coded: Callable[[LayerInfo], bool]
    """Which layers are in 8 bits."""
    checked: Callable[[], WholeMoment]
    """The same, laid out as it must be; raises ValueError where dtypes or sizes are others."""


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
