"""Where ``--config callbacks/x.yaml`` is found: the current folder first, then the fragments that are shipped."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In a wheel they lie inside the package; in a checkout beside it.
_SHIPPED = (_PACKAGE / "fragments", _PACKAGE.parent)
_FOLDERS = ("callbacks", "strategies")


def find_config(name: str) -> str:
    """The path of a configuration file: ``name`` itself where that exists, else the shipped fragment of that name."""
    path = Path(name)
    if path.exists() or path.is_absolute() or path.parts[:1] not in [(folder,) for folder in _FOLDERS]:
        return name
    for shipped in _SHIPPED:
        if (shipped / path).is_file():
            return str(shipped / path)
    return name


def find_configs(args: list[str]) -> list[str]:
    """A command line in which each ``--config NAME`` names a file that is found."""
    found, value_follows = [], False
    for arg in args:
        option, equals, value = arg.partition("=")
        if value_follows:
            arg = find_config(arg)
        elif equals and option in ("--config", "-c"):
            arg = f"{option}={find_config(value)}"
        value_follows = not value_follows and arg in ("--config", "-c")
        found.append(arg)
    return found
