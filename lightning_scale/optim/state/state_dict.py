"""State that keeps its own dtype through ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.dtensor import local
from lightning_scale.optim.state.foreign import completed, in_precision, is_own, refuse_other_momentum, translated


@contextmanager
def keep_state_dtypes(optimizer: Any) -> Iterator[None]:
    """Within this context ``optimizer.load_state_dict`` keeps each state tensor's dtype, and refuses another optimizer's state.

    torch casts floating-point parameters' state to the parameter's dtype: float32 moments of a bfloat16 parameter would
    lose half their bits, and 8-bit codes would become floats, of four times the memory. So it sees no tensors. Other hooks see
    and may change what is loaded as always.

    Args:
        optimizer: The optimizer that is about to load a state.

    Raises:
        ValueError: (From ``load_state_dict``, before anything is loaded) for state that `foreign.translated` refuses, or that has
            other dtypes or shapes.
    """
    name = type(optimizer).__name__
    ready: list[tuple[Tensor, dict[str, Any], set[int]]] = []

    def prepare(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        theirs, ours = state_dict["param_groups"], optimizer.param_groups
        if [len(group["params"]) for group in theirs] != [len(group["params"]) for group in ours]:
            return state_dict  # torch has a sentence for that
        own = is_own(state_dict)
        if "momentum" in optimizer.defaults:
            refuse_other_momentum(name, "trust_norm" in optimizer.defaults, state_dict)
        options = (*optimizer.defaults, *optimizer._groups_own, "decay_1d")
        groups = [completed(*pair, options) for pair in zip(theirs, ours, strict=True)]
        state = dict(state_dict["state"])
        for group, mine in zip(groups, ours, strict=True):
            named = {**group, "params": mine["params"], "param_names": mine.get("param_names") or ()}
            for number, p in zip(group["params"], mine["params"], strict=True):
                if not isinstance(state.get(number), Mapping):
                    continue
                expected = optimizer._expected_state(named, p)
                loaded = translated(name, p, optimizer._loaded_state(p, state[number]), expected, group, own)
                made: set[int] = set() if optimizer._plan.is_flat(p) else in_precision(p, loaded, expected)
                _check(name, p, loaded, expected)
                ready.append((p, loaded, made))
                state[number] = {}
        if not own:
            for group in groups:
                group.pop("step", None)  # which is each parameter's now
        return {**state_dict, "state": state, "param_groups": groups}

    def restore(_: Optimizer) -> None:
        for p, loaded, made in ready:
            for key, value in loaded.items():
                if isinstance(value, Tensor):
                    value = value.detach().to(p.device, copy=id(value) not in made)
                optimizer.state[p][key] = value

    before = optimizer.register_load_state_dict_pre_hook(prepare)  # last, after hooks that edit what is loaded
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)  # first, before hooks that look at it
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _check(name: str, p: Tensor, state: dict[str, Any], expected: dict[str, Tensor]) -> None:
    for key, belongs in expected.items():
        value = state.get(key)
        if not isinstance(value, Tensor):
            continue
        value = local(value)
        if (value.dtype, value.shape) != (belongs.dtype, belongs.shape):
            raise ValueError(
                f"{key} of a parameter of shape {tuple(p.shape)} is {_of(value)} in this state_dict, and {name} keeps it as"
                f" {_of(belongs)}: load a state_dict that the same kind of optimizer gave for the same parameters."
            )


def _of(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}"
