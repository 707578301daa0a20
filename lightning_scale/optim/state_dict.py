"""State that keeps its own dtype through ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


@contextmanager
def keep_state_dtypes(optimizer: Optimizer) -> Iterator[None]:
    """Within, ``optimizer.load_state_dict`` keeps each state tensor's dtype.

    torch casts floating-point parameters' state to the parameter's dtype: float32 moments of a bfloat16 parameter would
    lose half their bits, and 8-bit codes would become floats. Other hooks see and may change what is loaded as always.
    """
    loaded: dict[str, Any] = {}

    def remember(_: Optimizer, state_dict: dict[str, Any]) -> None:
        loaded.update(state_dict)

    def restore(_: Optimizer) -> None:
        numbers = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for number, p in zip(numbers, params, strict=True):
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
