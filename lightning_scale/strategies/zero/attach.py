"""Tells the optimizer where its layers lie, once DeepSpeed has taken the parameters apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_scale.optim.guarded import GuardedOptimizer
from lightning_scale.strategies.zero import deepspeed_internals
from lightning_scale.strategies.zero.bf16 import Bf16
from lightning_scale.strategies.zero.deepspeed_internals import insist
from lightning_scale.strategies.zero.flat import Flat
from lightning_scale.strategies.zero.partitions import Partitions, check_whole
from lightning_scale.strategies.zero.stage3 import Stage3
from lightning_scale.strategies.zero.stage12 import Stage12
from lightning_scale.strategies.zero.step import Preparation

# By name: their modules are DeepSpeed's own business.
_KINDS: dict[str, type[Partitions]] = {
    "DeepSpeedZeroOptimizer": Stage12,
    "DeepSpeedZeroOptimizer_Stage3": Stage3,
    "BF16_Optimizer": Bf16,
}


def attach(engine: Any, optimizer: Optimizer, names: Mapping[int, str], clip: float) -> tuple[list[Flat], Preparation]:
    """Make every step of an engine a step of whole layers; all ranks call it.

    Args:
        engine: DeepSpeed's.
        optimizer: The user's, which the engine has wrapped.
        names: What it called its parameters, by ``id``.
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
    partitions = kind(wrapper, names)
    flats = partitions.flats()
    check_whole(flats, engine.device)
    if isinstance(optimizer, GuardedOptimizer):
        optimizer.attach_layouts({flat.tensor: flat.layout for flat in flats})
        for flat in flats:
            if flat.loaded:  # before the first step, or DeepSpeed would not link those of later groups
                optimizer.init_state(optimizer.param_groups[flat.group], flat.tensor)
    preparation = Preparation(partitions, optimizer, clip, [flat.layout for flat in flats])
    partitions.before_step(preparation)
    partitions.forget_with_zero_grad()
    return flats, preparation
