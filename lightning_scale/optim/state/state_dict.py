"""State that keeps its own dtype through ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_scale.optim.dtensor import local


@contextmanager
def keep_state_dtypes(
    optimizer: Optimizer,
    expected: Callable[[dict[str, Any], Tensor], dict[str, Tensor]],
    taken: Callable[[Tensor, dict[str, Any]], dict[str, Any]],
) -> Iterator[None]:
    """Within this context ``optimizer.load_state_dict`` keeps each state tensor's dtype, and refuses another optimizer's state.

    torch casts floating-point parameters' state to the parameter's dtype: float32 moments of a bfloat16 parameter would
    lose half their bits, and 8-bit codes would become floats. Other hooks see and may change what is loaded as always.

    Args:
        optimizer: The optimizer that is about to load a state.
        expected: Returns the state that it would make for this rank's share of a parameter, from the group and the parameter.
        taken: Turns a loaded state of a parameter into the form that steps take.

    Raises:
        ValueError: (From ``load_state_dict``, before anything is loaded) for state of other dtypes or shapes.
    """
    loaded: dict[str, Any] = {}

    def remember(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        loaded.update(state_dict)
        state = dict(loaded["state"])
        for number, group, p in pairs():
            if number in state:
                state[number] = taken(p, state[number])
                _check(type(optimizer).__name__, p, state[number], expected(group, p))
        loaded["state"] = state
        return {**state_dict, "state": state}

    def pairs() -> Iterator[tuple[Any, dict[str, Any], Tensor]]:
        groups, own = loaded["param_groups"], optimizer.param_groups
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
            return  # torch has a sentence for that
        for theirs, ours in zip(groups, own, strict=True):
            for number, p in zip(theirs["params"], ours["params"], strict=True):
                yield number, ours, p

    def restore(_: Optimizer) -> None:
        for number, _group, p in pairs():
            for key, value in loaded["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    optimizer.state[p][key] = value.detach().to(p.device, copy=True)

    before = optimizer.register_load_state_dict_pre_hook(remember)  # last, after hooks that edit what is loaded
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
