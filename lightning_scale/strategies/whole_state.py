"""An optimizer's state as an unsharded run saves it, from shares on all ranks; and back, on any number of ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_scale.errors import ConfigurationError
from lightning_scale.hosts import collected
from lightning_scale.optim.base import OWN_STATE
from lightning_scale.optim.groups import names_of
from lightning_scale.optim.layout import Layout
from lightning_scale.optim.state.whole import Shard, by_blocks, mended, shards, whole

_WRAPPERS = re.compile(r"\b(?:_orig_mod|_checkpoint_wrapped_module)\.")
"""What torch.compile and torch's checkpoint_wrapper put into the names of what they wrap."""

Wholes = dict[str, dict[str, Tensor]]
"""Each layer's state, by the name that the optimizer's layouts give it."""


def plain_name(name: str) -> str:
    """Return the name that a parameter has where nothing wraps its layer."""
    return _WRAPPERS.sub("", name)


@dataclass(frozen=True)
class Param:
    """One parameter of an optimizer.

    Args:
        name: What the optimizer calls it, and its layouts.
        keys: What the module's ``state_dict`` calls it: more than one where it is tied.
        shape: Of the whole parameter.
    """

    name: str
    keys: tuple[str, ...]
    shape: tuple[int, ...]


def params_of(optimizer: Optimizer, module: nn.Module) -> list[list[Param]]:
    """The optimizer's parameters, group by group, while it still has them.

    Raises:
        ConfigurationError: for a parameter that the module has not.
    """
    keys: dict[int, list[str]] = {}
    for key, p in module.named_parameters(remove_duplicate=False):
        keys.setdefault(id(p), []).append(key)
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        named = list(zip(names_of(group, number), group["params"], strict=True))
        for name, p in named:
            if id(p) not in keys:
                raise ConfigurationError(f"the optimizer has a parameter {name!r} that is not one of the module's.")
        groups.append([Param(name, tuple(keys[id(p)]), tuple(_shape(p))) for name, p in named])
    return groups


def _shape(p: Any) -> torch.Size:
    """Of the whole parameter, also where ZeRO-3 has taken it apart already."""
    shape: torch.Size = getattr(p, "ds_shape", p.shape)
    return shape


def gather(
    shares: Iterable[tuple[Layout, Mapping[str, Tensor]]], groups: Sequence[Sequence[Param]], eight_bit_from: float
) -> Wholes:
    """All layers' whole state on rank 0, in its main memory; nothing on the others. Every rank calls it.

    Args:
        shares: This rank's local tensors: where their layers lie, and their state. As many on all ranks.
        groups: The optimizer's parameters.
        eight_bit_from: From which size of a layer on its moments are in 8 bits.
    """
    found: dict[str, list[Shard]] = {}
    for layout, state in shares:
        for name, piece in _on_rank_zero(shards(layout, state, eight_bit_from)):
            found.setdefault(name, []).append(piece)
    shapes = {p.name: p.shape for group in groups for p in group}
    return {name: whole(name, shapes[name], parts) for name, parts in found.items()}


_TENSORS = ("values", "scales", "numbers")


def _on_rank_zero(own: list[tuple[str, Shard]]) -> list[tuple[str, Shard]]:
    """Every rank's, on rank 0; nothing on the others."""
    if not torch.distributed.is_initialized():
        return own
    described = [(name, piece.start, piece.length, [list(getattr(piece, k)) for k in _TENSORS]) for name, piece in own]
    tensors = [t for _, piece in own for k in _TENSORS for t in getattr(piece, k).values()]
    found = []
    for pieces, theirs in collected(tensors, described) or ():
        rest = iter(theirs)
        for name, start, length, keys in pieces:
            found.append((name, Shard(start, length, *({key: next(rest) for key in kind} for kind in keys))))
    return found


@contextmanager
def all_say(kind: type[Exception]) -> Iterator[None]:
    """Within, an error of this kind on one rank is a ConfigurationError on all of them, after it. Every rank enters it.

    Nothing within may be a collective.
    """
    import torch.distributed as dist

    own: str | None = None
    try:
        yield
    except kind as error:
        own = str(error)
    found: list[str | None] = [own]
    if dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, own)
    if (first := next(filter(None, found), None)) is not None:
        raise ConfigurationError(first)


def refuse_other_weights(saved: Iterable[str], own: Iterable[str]) -> None:
    """Raise a ConfigurationError for names of saved weights that are not the module's."""
    saved, own = set(saved), set(own)
    if saved != own:
        raise ConfigurationError(
            f"the checkpoint's weights are not this module's: {sorted(own - saved)} are missing, {sorted(saved - own)} are"
            " unknown."
        )


def to_state_dict(
    wholes: Wholes, groups: Sequence[Sequence[Param]], options: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
) -> dict[str, Any]:
    """A ``state_dict`` as the optimizer gives it where nothing is sharded.

    Args:
        wholes: Each layer's whole state.
        groups: The optimizer's parameters, group by group.
        options: The options of each group.
        more: What else stands beside ``state`` and ``param_groups``.
    """
    state: dict[int, dict[str, Tensor]] = {}
    saved = []
    number = 0
    for group, own in zip(groups, options, strict=True):
        numbers = range(number, number + len(group))
        number += len(group)
        state |= {i: wholes[p.name] for i, p in zip(numbers, group, strict=True) if p.name in wholes}
        saved.append({**own, "params": list(numbers)})
    return {"state": state, "param_groups": saved, **more}


def from_state_dict(state_dict: Mapping[str, Any], groups: Sequence[Sequence[Param]]) -> Wholes:
    """The layers' state out of such a ``state_dict``, whose groups and parameters have the order of this optimizer's.

    Raises:
        ConfigurationError: where they have not.
    """
    pairs = _pairs(state_dict, groups)
    return {p.name: by_blocks(state_dict["state"][key]) for key, p in pairs if key in state_dict["state"]}


def with_keys(state_dict: Mapping[str, Any], groups: Sequence[Sequence[Param]]) -> dict[str, Any]:
    """Such a ``state_dict`` with the module's keys in place of numbers, as torch.distributed.checkpoint has it.

    Raises:
        ConfigurationError: where groups or parameters have not the order of this optimizer's.
    """
    pairs = _pairs(state_dict, groups)
    state = {p.keys[0]: mended(state_dict["state"][key]) for key, p in pairs if key in state_dict["state"]}
    saved = [
        {**theirs, "params": [p.keys[0] for p in ours]}
        for theirs, ours in zip(state_dict["param_groups"], groups, strict=True)
    ]
    # Where `OptimizerBase.state_dict` of sharded parameters has it.
    saved[0] |= {key: int(state_dict[key]) for key in OWN_STATE if key in state_dict}
    return {"state": state, "param_groups": saved}


def _pairs(state_dict: Mapping[str, Any], groups: Sequence[Sequence[Param]]) -> list[tuple[Any, Param]]:
    """What the ``state_dict`` calls each parameter."""
    saved = state_dict["param_groups"]
    if [len(group["params"]) for group in saved] != [len(group) for group in groups]:
        raise ConfigurationError(
            f"the checkpoint's optimizer has groups of {[len(group['params']) for group in saved]} parameters, and this run's"
            f" of {[len(group) for group in groups]}: resume with the same model and the same parameter groups."
        )
    found = []
    for theirs, ours in zip(saved, groups, strict=True):
        names = theirs.get("param_names") or [None] * len(ours)
        for key, name, p in zip(theirs["params"], names, ours, strict=True):
            # Where the user gave the optimizer no names, and nothing is sharded, a group's order is all there is.
            for said in (name, key if isinstance(key, str) else None):
                if said is not None and plain_name(said) not in map(plain_name, (p.name, *p.keys)):
                    raise ConfigurationError(
                        f"the checkpoint's optimizer has {said!r} where this run's has {p.keys[0]!r}: resume with the same"
                        " model and the same parameter groups."
                    )
            found.append((key, p))
    return found
