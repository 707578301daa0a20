"""Methods of Lightning's objects that are replaced while `fit` runs, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_scale.one_run import OfOneRun


class _Replaced:
    """Stands for a method of ``owner``; a copy of the owner has its class's own."""

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        self._owner, self._name, self._call = owner, name, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (self._owner, self._name)


class Replacing(OfOneRun):
    """Replaces methods, and remembers how they are put back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        setattr(owner, name, _Replaced(owner, name, make(getattr(owner, name))))
        self._undo.append(lambda: vars(owner).pop(name, None))

    def restore(self) -> None:
        """Put back everything that was replaced."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
