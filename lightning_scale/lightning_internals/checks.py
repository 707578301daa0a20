"""How a list of another package's names is kept, and checked against the version that is installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import resolve_name
from typing import Any, Literal

Use = Literal["read", "set", "called", "replaced", "overridden"]
"""What is done with a name.

``read``, ``set`` and ``called`` say it themselves; ``replaced``: on an instance, while a fit runs, with something that may
call the original; ``overridden``: by a subclass, which nothing would call any more if the name were another.
"""


@dataclass(frozen=True)
class Name:
    """One name of another package that this package relies on.

    Args:
        owner: The class or module that has it, as ``package.module:Class`` or ``package.module``.
        name: The attribute, method or function.
        use: What is done with it.
        purpose: What it is needed for.
        on_instance: Whether only instances have it, because ``__init__`` sets it.
        needed: Whether this package cannot do without it.
    """

    owner: str
    name: str
    use: Use
    purpose: str
    on_instance: bool = False
    needed: bool = True

    @property
    def package(self) -> str:
        """The package whose version decides whether the name is there."""
        return self.owner.partition(":")[0].partition(".")[0]

    def missing(self) -> RuntimeError:
        """The error where the installed version has no such name."""
        owner = self.owner.rpartition(":")[2]
        return RuntimeError(
            f"{self.package} {import_module(self.package).__version__} has no {owner}.{self.name}, which lightning_scale"
            f" relies on: use a version of {self.package} that its metadata names, or report this."
        )


def check_classes(names: Iterable[Name]) -> None:
    """Check every name that a class or a module has, without an instance.

    Raises:
        RuntimeError: for the first one that is missing; it names the version.
    """
    for entry in names:
        if not entry.on_instance and entry.needed and not _has(_owner(entry), entry.name):
            raise entry.missing()


def check_instance(names: Iterable[Name], owner: str, instance: Any) -> None:
    """Check the names that instances of ``owner`` get in ``__init__``.

    Raises:
        RuntimeError: for the first one that ``instance`` lacks; it names the version.
    """
    for entry in names:
        if entry.owner != owner or not entry.on_instance or not entry.needed:
            continue
        # Of the class first: a property there would be computed.
        if not hasattr(type(instance), entry.name) and not hasattr(instance, entry.name):
            raise entry.missing()


def _owner(entry: Name) -> Any:
    try:
        return resolve_name(entry.owner)
    except (ImportError, AttributeError):
        raise entry.missing() from None


def _has(owner: Any, name: str) -> bool:
    # A dataclass's field whose default is made for each instance is no attribute of the class.
    return hasattr(owner, name) or name in getattr(owner, "__dataclass_fields__", ())
