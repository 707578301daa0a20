"""Loading what others may have written: tensors and plain values, and never a function to call."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import AttributeDict

from lightning_scale.errors import UnsafeCheckpointError

# In torch's messages, and in those of our own unpickler.
_NAME = re.compile(r"(?:GLOBAL|class:?|function) ([A-Za-z_][\w.]*)")


@cache
def _plain_classes() -> list[Any]:
    """What holds plain values and runs nothing: Lightning's dict of hyper-parameters, and numpy's numbers."""
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]
    # torch fills no dicts of other kinds; who resumes has hyper-parameters of their own, and does not read these.
    attributes = (OrderedDict, f"{AttributeDict.__module__}.{AttributeDict.__qualname__}")
    return [attributes, np.float64(0).__reduce__()[0], np.dtype, *{type(np.dtype(code)) for code in codes}]


def _allowed() -> list[Any]:
    """Those, and torch's and this package's optimizers: modules keep the class to use among their hyper-parameters."""
    kinds: list[Any] = [torch.optim.Optimizer]
    for kind in kinds:
        kinds += [below for below in kind.__subclasses__() if below not in kinds]
    return _plain_classes() + [kind for kind in kinds if kind.__module__.split(".")[0] in ("torch", "lightning_scale")]


def not_plain(path: Any) -> list[str]:
    """Names of the classes and functions that a file asks for, and that loading it refuses; none of what is no torch file."""
    try:
        with torch.serialization.safe_globals(_allowed()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # another kind of file, or another place than a disk
        return []


@contextmanager
def refusing(name: Any) -> Iterator[None]:
    """Within, `torch.load` takes plain values of Lightning and numpy, too, and what it refuses becomes one sentence.

    Args:
        name: What to call the file.

    Raises:
        UnsafeCheckpointError: for a file that asks for more than tensors and plain values, or that is no pickle.
    """
    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    except pickle.UnpicklingError as error:
        raise unsafe(name, str(error)) from None


def unsafe(name: Any, reason: str) -> UnsafeCheckpointError:
    """The error for a file.

    Args:
        name: What to call the file.
        reason: The unpickler's message, or ``GLOBAL`` and what the file asks for.
    """
    found = not_plain(name) or _NAME.findall(reason)[:1]
    what = f"it asks for {', '.join(found)}" if found else _last_words(reason)
    return UnsafeCheckpointError(
        f"{name} was not loaded, nor anything beside it, for it may hold code: {what}, and checkpoints hold tensors and plain"
        " values. If you trust whoever wrote it, allow what it asks for with torch.serialization.add_safe_globals, or all of it"
        " with weights_only=False (an argument of fit, validate and test)."
    )


def warn_of_what_cannot_be_loaded(path: Any) -> None:
    """Say of a checkpoint that has just been written what it would be refused for."""
    found = not_plain(path)
    if found:
        warnings.warn(
            f"{path} holds {', '.join(found)}, and loading it will be refused, for such a file may hold code: save plain values"
            " (a dict, numbers, strings; save_hyperparameters(ignore=[...]) leaves others out), or load it with"
            " weights_only=False.",
            stacklevel=2,
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
    with torch.serialization.safe_globals(list(allowed)), refusing(name or file):
        return torch.load(file, map_location=map_location, weights_only=True, **options)
