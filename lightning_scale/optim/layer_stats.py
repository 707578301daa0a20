"""What a layer-wise optimizer knows of one parameter's last step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerStats(NamedTuple):
    """One whole parameter's norms and ratio in the last step: 0-d tensors on the parameter's device."""

    weight_norm: Tensor
    """‖w‖ before the step."""
    update_norm: Tensor
    """The norm the ratio was divided by: ‖u‖ for LAMB, ‖g‖ or ‖m‖ for LARS."""
    trust_ratio: Tensor
    """The factor used; 1 for parameters without layer adaptation."""


class LayerRule(NamedTuple):
    """How one parameter's last step was scaled: known without waiting for the device."""

    lr: float | Tensor
    """Its group's rate, in the last step that was tried; a 0-d tensor where the user gave one."""
    adapts: bool
    """Whether it takes a ratio of its own; the ratio is 1 otherwise."""
    clip: tuple[float, float] | None
    """Bounds on its ratio (``trust_ratio_clip``)."""
