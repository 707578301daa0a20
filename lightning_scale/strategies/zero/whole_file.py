"""Checkpoints as single files of whole weights and whole optimizer state, in float32: those that DDP writes and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.base import OWN_STATE, OptimizerBase
from lightning_scale.optim.eight_bit import EightBitOptimizer
from lightning_scale.optim.state.moments import EIGHT_BIT_FROM
from lightning_scale.optim.state.whole import fill
from lightning_scale.strategies.whole_state import (
    Param,
    Wholes,
    all_say,
    from_state_dict,
    gather,
    refuse_other_weights,
    to_state_dict,
)
from lightning_scale.strategies.zero.flat import Flat

_WEIGHT = "weight"


def whole_weights(engine: Any, flats: Sequence[Flat], groups: Sequence[Sequence[Param]]) -> dict[str, Tensor]:
    """The module's ``state_dict``, as DDP would save it, on rank 0. Every rank calls it.

    The others have it as they hold it, or on stage 3 tensors without memory: hooks that look for a key find it on all ranks.

    Args:
        engine: DeepSpeed's engine.
        flats: The flat tensors that its optimizer steps.
        groups: The optimizer's parameters, group by group.
    """
    _check_loaded(flats)
    wholes = gather([(flat.layout, {_WEIGHT: flat.tensor.detach()}) for flat in flats], groups, EIGHT_BIT_FROM)
    weights = _module_state(engine)
    for p in (p for group in groups for p in group):
        if p.name in wholes:  # in float32, where the module's is rounded
            weights.update({key: wholes[p.name][_WEIGHT] for key in p.keys if key in weights})
    return weights


def whole_state(optimizer: Any, flats: Sequence[Flat], groups: Sequence[Sequence[Param]]) -> dict[str, Any]:
    """The optimizer's ``state_dict``, as DDP would save it, on rank 0; on the others without ``state``. Every rank calls it.

    Args:
        optimizer: The optimizer that the user configured.
        flats: The flat tensors that it steps.
        groups: Its parameters, group by group.
    """
    _check(optimizer, flats)
    shares = [(flat.layout, optimizer.state[flat.tensor]) for flat in flats]
    wholes = gather(shares, groups, _eight_bit_from(optimizer))
    return to_state_dict(wholes, groups, optimizer.param_groups, optimizer.own_state())


def _module_state(engine: Any) -> dict[str, Any]:
    """With the keys that the module's own ``state_dict()`` has."""
    state: dict[str, Any] = engine.module.state_dict()
    if not engine.zero_optimization_partition_weights():
        return {key: value.detach().cpu() if isinstance(value, Tensor) else value for key, value in state.items()}
    whole: dict[str, Tensor] = engine._zero3_consolidated_16bit_state_dict() or {}  # on rank 0 alone
    params = dict(engine.module.named_parameters(remove_duplicate=False))
    return {
        key: whole[key]
        if key in whole
        else torch.empty(params[key].ds_shape, device="meta")
        if key in params
        else value
        for key, value in state.items()
    }


def restore_weights(engine: Any, module: nn.Module, weights: Mapping[str, Tensor], strict: bool) -> None:
    """Load a module's ``state_dict`` of whole tensors; every rank calls it."""
    if not engine.zero_optimization_partition_weights():
        module.load_state_dict(dict(weights), strict=strict)
        return
    import deepspeed

    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = {key: value for key, value in module.state_dict(keep_vars=True).items() if key not in parameters}
    if strict:
        refuse_other_weights(weights, parameters.keys() | buffers.keys())
    for key, p in parameters.items():
        if key in weights:
            _same_shape(key, tuple(getattr(p, "ds_shape", p.shape)), weights[key])
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0), torch.no_grad():
                if torch.distributed.get_rank() == 0:
                    p.copy_(weights[key])
    for key, buffer in buffers.items():
        if key in weights:
            _same_shape(key, tuple(buffer.shape), weights[key])
            with torch.no_grad():
                buffer.copy_(weights[key])


def _same_shape(key: str, shape: tuple[int, ...], value: Tensor) -> None:
    if tuple(value.shape) != shape:
        raise ConfigurationError(f"{key} has shape {tuple(value.shape)} in the checkpoint, and {shape} in this module.")


def restore_optimizer(
    optimizer: Any,
    flats: Sequence[Flat],
    groups: Sequence[Sequence[Param]],
    weights: Mapping[str, Tensor],
    state_dict: Mapping[str, Any],
) -> None:
    """Fill the flat tensors, and their state, from whole ones. Every rank calls it, and all raise what one finds wrong.

    Args:
        optimizer: The optimizer that the user configured.
        flats: The flat tensors that it steps.
        groups: Its parameters, group by group.
        weights: The module's ``state_dict``.
        state_dict: The optimizer's ``state_dict``. A parameter that has taken no step may have no state.

    Raises:
        ConfigurationError: where the state is not this optimizer's.
    """
    _check(optimizer, flats)
    wholes: Wholes = from_state_dict(state_dict, groups)
    copies: dict[str, Tensor] = {}
    for p in (p for group in groups for p in group):
        own = wholes.setdefault(p.name, {})
        # A master copy, where the run kept one, is what the weights were rounded from.
        weight = own.pop("master", weights.get(p.keys[0]))
        if weight is not None:  # else the module's stays, as the rest of what a file leaves out
            copies[p.name] = weight
    with all_say(ValueError):
        for flat in flats:
            for run in flat.layout.runs:
                whole = copies.get(flat.layout.layers[run.layer].name)
                if whole is not None:
                    own_share = flat.tensor.detach()[run.tensor_start : run.tensor_start + run.length]
                    own_share.copy_(whole.contiguous().view(-1)[run.layer_start : run.layer_start + run.length])
            fill(flat.layout, optimizer.state[flat.tensor], wholes, _eight_bit_from(optimizer))
    for own, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        own.update({key: value for key, value in saved.items() if key not in ("params", "param_names", *OWN_STATE)})
    optimizer.load_own_state(state_dict)


def _check(optimizer: Any, flats: Sequence[Flat]) -> None:
    if not isinstance(optimizer, OptimizerBase):
        raise ConfigurationError(
            f"single-file checkpoints under ZeRO hold the state of this package's optimizers, and the optimizer is"
            f" {type(optimizer).__name__}: save DeepSpeed's folders (leave save_distributed_checkpoint out)."
        )
    _check_loaded(flats)


def _check_loaded(flats: Sequence[Flat]) -> None:
    if not all(flat.loaded for flat in flats):
        raise ConfigurationError("single-file checkpoints need the optimizer in memory, and it is offloaded to NVMe.")


def _eight_bit_from(optimizer: OptimizerBase) -> float:
    return optimizer._eight_bit_from if isinstance(optimizer, EightBitOptimizer) else EIGHT_BIT_FROM
