"""What the tests of all Triton kernels share: where they run, and kernels with a mistake in them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def module_of(source: str, folder: Path) -> ModuleType:
    """A file of kernels, imported from its source."""
    path = folder / "changed.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("changed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
