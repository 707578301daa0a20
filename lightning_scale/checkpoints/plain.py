"""Loading what others may have written: tensors and plain values, and never a function to call."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lightning_scale.errors import UnsafeCheckpointError

# In torch's messages, and in those of our own unpickler.
_NAME = re.compile(r"(?:GLOBAL|class:?|function) ([A-Za-z_][\w.]*)")


@contextmanager
def refusing(name: Any) -> Iterator[None]:
    """Within, what an unpickler refuses becomes one sentence.

    Args:
        name: What to call the file.

    Raises:
        UnsafeCheckpointError: for a file that asks for more than tensors and plain values, or that is no pickle.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise unsafe(name, str(error)) from None


def unsafe(name: Any, reason: str) -> UnsafeCheckpointError:
    """The error for a file.

    Args:
        name: What to call the file.
        reason: The unpickler's message, or ``GLOBAL`` and what the file asks for.
    """
    found = _NAME.search(reason)
    what = f"it asks for {found[1]}" if found else _last_words(reason)
    return UnsafeCheckpointError(
        f"{name} was not loaded, nor anything beside it, for it may hold code: {what}, and checkpoints hold tensors and plain"
        " values. If you trust whoever wrote it, allow what it asks for with torch.serialization.add_safe_globals."
    )


def _last_words(reason: str) -> str:
    """What matters of torch's page of advice."""
    told = re.search(r"WeightsUnpickler error:\s*(.+)", reason)
    return (told[1] if told else (reason.splitlines() or ["it is no pickle"])[0]).strip().rstrip(".")


def load_plain(
    file: Any,
    name: Any = None,
    map_location: Any = "cpu",
    allowed: Sequence[type | Callable[..., Any]] = (),
    **options: Any,
) -> Any:
    """``torch.load`` that runs nothing of the file.

    Args:
        file: A path or an open file.
        name: What to call it in an error.
        map_location: Where tensors go, as in ``torch.load``.
        allowed: Classes that it may hold beside tensors and plain values.
        options: Further options of ``torch.load``.

    Raises:
        UnsafeCheckpointError: for a file that asks for more.
    """
    with refusing(name or file), torch.serialization.safe_globals(list(allowed)):
        return torch.load(file, map_location=map_location, weights_only=True, **options)
