"""A sharded optimizer's state by its parameters' names: into checkpoints, and out of those of any strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.optim.dtensor import is_sharded, like, local
from lightning_scale.optim.state.moments import absmax_key
from lightning_scale.optim.state.sharded_moments import scales_key
from lightning_scale.strategies.whole_state import all_say, params_of, plain_name


def names_of(optimizer: Optimizer, module: nn.Module) -> list[list[tuple[str, ...]]]:
    """Return the module's names of each parameter of each group, as they are where nothing is wrapped: several of a tied one.

    Raises:
        ConfigurationError: for a parameter that the module has not.
    """
    return [[tuple(map(plain_name, p.keys)) for p in group] for group in params_of(optimizer, module)]


def named(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    """Return the optimizer's ``state_dict`` with names in place of numbers. What has no state yet is not there."""
    names = names_of(optimizer, module)
    found = optimizer.state_dict()
    name_of = {
        number: own[0]
        for group, theirs in zip(found["param_groups"], names, strict=True)
        for number, own in zip(group["params"], theirs, strict=True)
    }
    groups = [{**g, "params": [name_of[number] for number in g["params"]]} for g in found["param_groups"]]
    return {"state": {name_of[number]: state for number, state in found["state"].items()}, "param_groups": groups}


def gathered(state_dict: dict[str, Any], keeps: bool) -> dict[str, Any]:
    """Return a ``state_dict`` with whole tensors on the host, gathered one after another; every rank calls it.

    Args:
        state_dict: The optimizer's own.
        keeps: Whether this rank keeps them.
    """

    def whole(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.full_tensor() if is_sharded(value) else value
        return value.cpu() if keeps else None

    state = {key: {k: whole(v) for k, v in own.items()} for key, own in state_dict["state"].items()}
    return {**state_dict, "state": state} if keeps else {}


def load_named(optimizer: Optimizer, module: nn.Module, found: Mapping[str, Any]) -> None:
    """Load what `named` gave, for as many of the parameters as are in it; all ranks raise what one of them finds wrong.

    Groups are found by their parameters, and take the options that were saved. Parameters that had no state have none; so
    have those that were in no group.

    Raises:
        ConfigurationError: where the parameters of a group were in several, or the optimizer refuses the state.
    """
    with all_say(Exception):
        optimizer.load_state_dict(_numbered(optimizer, module, found))


def _numbered(optimizer: Optimizer, module: nn.Module, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``state_dict`` that the optimizer can load."""
    names = names_of(optimizer, module)
    own = optimizer.state_dict()["param_groups"]
    saved = {plain_name(name): number for number, g in enumerate(found["param_groups"]) for name in g["params"]}
    if found["param_groups"] and not any(name in saved for group in names for all_of in group for name in all_of):
        raise ConfigurationError(
            f"the checkpoint's optimizer has none of this one's parameters, but {', '.join(sorted(saved)[:3])} ...: resume with"
            " the same model."
        )
    groups, state = [], {}
    states = {plain_name(name): value for name, value in found["state"].items()}
    for number, (group, theirs) in enumerate(zip(own, names, strict=True)):
        before = sorted({saved[name] for all_of in theirs for name in all_of if name in saved})
        if len(before) > 1:
            raise ConfigurationError(
                f"the parameters of the optimizer's group {number} were in the groups {before} of the checkpoint's: resume with"
                " the same parameter groups."
            )
        options = found["param_groups"][before[0]] if before else {}
        kept = {key: value for key, value in group.items() if key in ("params", "param_names")}
        groups.append({**group, **options, **kept})
        for key, all_of, p in zip(group["params"], theirs, optimizer.param_groups[number]["params"], strict=True):
            name = next((name for name in all_of if name in states), None)
            if name is not None:
                state[key] = {k: own_share(p, k, value, states[name]) for k, value in states[name].items()}
    return {"state": state, "param_groups": groups}


def is_shared_out(p: Tensor, key: str, shape: Sequence[int], among: Mapping[str, Any]) -> bool:
    """Whether a value of a parameter's state, of this whole shape, has the parameter's sharding.

    Args:
        p: The parameter.
        key: What the value is called.
        shape: The value's whole shape.
        among: The parameter's state, or its keys: codes whose scales lie block by block stay whole, for only the optimizer
            knows which of them are its own.
    """
    if not is_sharded(p) or absmax_key(key) in among:
        return False
    by_rows = key.endswith(scales_key("")) and tuple(shape[:1]) == tuple(p.shape[:1])
    return by_rows or (tuple(shape) == tuple(p.shape) and p.dim() > 0)


def own_share(p: Tensor, key: str, value: Any, among: Mapping[str, Any]) -> Any:
    """Return this rank's share of a whole value of a parameter's state; what is sharded already is returned as it is."""
    if not isinstance(value, Tensor) or is_sharded(value) or not is_shared_out(p, key, value.shape, among):
        return value
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    assert is_sharded(p)
    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    rows = value
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        if value.shape[dim] == p.shape[dim]:
            rows = rows.narrow(dim, min(start, value.shape[dim]), length)
    return like(p, rows.to(local(p).device, copy=True))


def room(p: Tensor, key: str, shape: Sequence[int], dtype: torch.dtype, among: Mapping[str, Any]) -> Tensor:
    """Return an empty tensor for a value of a parameter's state: for this rank's share where it is shared out."""
    if not is_shared_out(p, key, shape, among):
        return torch.empty(tuple(shape), dtype=dtype)
    own = local(p)
    size = own.shape if tuple(shape) == tuple(p.shape) else (*own.shape[:1], *shape[1:])
    return like(p, torch.empty(size, dtype=dtype, device=own.device))
