"""Import what may not be there."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from importlib.util import find_spec
from typing import Any

from benchmarks.contestants.contestant import NotAvailable


def load(module: str) -> Any:
    """A module, imported without what it prints.

    Raises:
        NotAvailable: with the reason.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(module)
    except Exception as error:  # what a package raises while it is imported is its own affair
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise NotAvailable("not installed") from error
        raise NotAvailable(f"import {module} fails: {type(error).__name__}: {error}") from error


def load_file(module: str) -> Any:
    """A module of a package whose own ``__init__`` may fail for something else that is missing.

    Raises:
        NotAvailable: with the reason.
    """
    try:
        return load(module)
    except NotAvailable as reason:
        if str(reason) == "not installed":
            raise
    parents = module.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        name = ".".join(parents[:depth])
        if name in sys.modules:
            continue
        spec = find_spec(name)
        bare = types.ModuleType(name)
        bare.__path__ = list(spec.submodule_search_locations or ()) if spec else []
        sys.modules[name] = bare
    return load(module)
