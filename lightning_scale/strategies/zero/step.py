"""One step a window: the optimizer is told where its layers lie, and a window's gradients are made ready for each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.backends.norms import global_norm, nonfinite
from lightning_scale.optim.base import OptimizerBase
from lightning_scale.optim.layout import Layout
from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat, shares_of
from lightning_scale.strategies.zero.partitions import Partitions, check_whole
from lightning_scale.strategies.zero.pieces import Pieces, Seen
from lightning_scale.strategies.zero.slices import Bf16, Stage12
from lightning_scale.strategies.zero.stage3 import Stage3


class Preparation:
    """Runs ahead of every step, when the gradients of its window are summed and nothing has been computed of them.

    Args:
        partitions: Where the gradients are.
        optimizer: The optimizer that the user configured.
        clip: The largest global norm of gradients, as ``Trainer(gradient_clip_val)`` says; 0: not clipped.
        layouts: Which layers' gradients lie in each of the partitions' flat tensors.
        seen: Which layers have a gradient.
        pieces: What leaves the others out of the step.
    """

    def __init__(
        self,
        partitions: Partitions,
        optimizer: Optimizer,
        clip: float,
        layouts: Sequence[Layout],
        seen: Seen,
        pieces: Pieces,
    ) -> None:
        self.divisor: float | Tensor = 1.0
        """What the next step's gradients are divided by first."""
        self._partitions = partitions
        self._optimizer = optimizer
        self._clip = clip
        self._layouts = layouts
        self._seen, self._pieces = seen, pieces
        self.watching = False
        """Whether to note `nonfinite`."""
        self.nonfinite: Tensor | None = None
        """Which layers' gradients were not finite in the last step, on this rank: in `layers`' order."""

    @property
    def layers(self) -> list[str]:
        """The names of all layers; one that lies in several flat tensors stands there as often."""
        return [layer.name for layout in self._layouts for layer in layout.layers]

    @torch.no_grad()
    def take_up_written(self) -> None:
        """See `Partitions.take_up_written`; before every step and every checkpoint."""
        self._partitions.take_up_written()

    @torch.no_grad()
    def __call__(self) -> None:
        """Every rank calls it in every step."""
        self.take_up_written()
        self._pieces.missing = self._seen.missing(self._partitions.alike)
        gradients = self._partitions.gradients()
        divisor, self.divisor = self.divisor, 1.0
        if self.watching:  # a clip by the norm would spread a NaN over all of them
            held = [
                s for lay, (_, tensors) in zip(self._layouts, gradients, strict=True) for s in shares_of(lay, tensors)
            ]
            self.nonfinite = nonfinite(held, gradients[0][1][0].device)
        if isinstance(divisor, Tensor) or divisor != 1.0:
            for _, tensors in gradients:
                own = divisor.to(tensors[0].device) if isinstance(divisor, Tensor) else divisor
                torch._foreach_div_(tensors, own)
        if self._clip > 0:
            # As torch.nn.utils.clip_grad_norm_ does it where gradients are whole.
            factor = (self._clip / (global_norm(gradients) + 1e-6)).clamp(max=1.0)
            for _, tensors in gradients:
                torch._foreach_mul_(tensors, factor.to(tensors[0].device, tensors[0].dtype))
        if isinstance(self._optimizer, OptimizerBase):
            self._optimizer.decide(gradients)


# By name: their modules are DeepSpeed's own business.
_KINDS: dict[str, type[Partitions]] = {
    "DeepSpeedZeroOptimizer": Stage12,
    "DeepSpeedZeroOptimizer_Stage3": Stage3,
    "BF16_Optimizer": Bf16,
}


def attach(
    engine: Any, optimizer: Optimizer, names: Mapping[int, str], params: Sequence[Tensor], clip: float
) -> tuple[list[Flat], Preparation]:
    """Make every step of an engine a step of whole layers; all ranks call it.

    Args:
        engine: DeepSpeed's engine.
        optimizer: The optimizer that the user configured, which the engine has wrapped.
        names: What it called its parameters, by ``id``.
        params: Those.
        clip: The largest global norm of gradients; 0: not clipped.

    Returns:
        The flat tensors that are stepped, and what runs ahead of every step.

    Raises:
        RuntimeError: where this version of DeepSpeed keeps something in another way; it names the version.
    """
    deepspeed_internals.check(deepspeed_internals.ENGINE, engine)
    wrapper = engine.optimizer
    kind = _KINDS.get(type(wrapper).__name__)
    insist(kind is not None, f"the optimizer is wrapped in {type(wrapper).__name__}")
    insist(wrapper.optimizer is optimizer, "the wrapper holds another optimizer than it was given")
    insist(not engine.managed_gradient_accumulation(), "managed_gradient_accumulation is not off")
    assert kind is not None
    trained = {id(p) for p in params if p.requires_grad}
    partitions = kind(wrapper, names, [p for p in engine.module.parameters() if id(p) not in trained])
    flats = partitions.flats()
    check_whole(flats, engine.device)
    if isinstance(optimizer, OptimizerBase):
        optimizer.attach_layouts({flat.tensor: flat.layout for flat in flats})
        for flat in flats:
            if flat.loaded:  # before the first step, or DeepSpeed would not link those of later groups
                optimizer.init_state(optimizer.param_groups[flat.group], flat.tensor)
    seen = Seen({names[id(p)]: p for p in params if id(p) in trained}, flats)
    pieces = Pieces(optimizer, flats)
    preparation = Preparation(partitions, optimizer, clip, [flat.layout for flat in flats], seen, pieces)
    partitions.before_step(preparation)
    partitions.forget_with_zero_grad()
    partitions.run_before("zero_grad", seen.forget)
    return flats, preparation
