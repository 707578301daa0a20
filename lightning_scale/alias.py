"""Packages that import ``pytorch_lightning`` get ``lightning.pytorch``, whose classes this package works with."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from lightning_scale.errors import ConfigurationError

FLAG = "--alias_pytorch_lightning"
"""The command's option that calls `alias_pytorch_lightning` before anything is imported."""
_NAMES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}


def alias_pytorch_lightning() -> None:
    """From now on let ``pytorch_lightning`` and its submodules be those of ``lightning.pytorch``.

    The two packages hold the same code under two names, so that a module of one is no module for a Trainer of the other. Call
    this before what is built on ``pytorch_lightning`` is imported; nothing of it has to be edited, and ``pytorch_lightning``
    need not be installed. ``lightning_fabric`` becomes ``lightning.fabric`` likewise.

    Raises:
        ConfigurationError: where ``pytorch_lightning`` has been imported before.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name in _NAMES:
        if name in sys.modules:
            raise ConfigurationError(
                f"{name} has been imported before it could become {_NAMES[name]}: call alias_pytorch_lightning() (or give"
                f" {FLAG}) before anything that is built on it is imported."
            )
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, rest = fullname.partition(".")
        if root not in _NAMES:
            return None
        real = ".".join(filter(None, [_NAMES[root], rest]))
        return ModuleSpec(fullname, _Same(real)) if find_spec(real) is not None else None


class _Same(Loader):
    """Gives the module of another name."""

    def __init__(self, real: str) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._real)
        self._spec: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the other name's there
