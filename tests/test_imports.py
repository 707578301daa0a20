"""Imports only go down: by the order of the folders that `CONTRIBUTING.md` has, and in no circle of modules."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import lightning_scale

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_scale"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imported(name: str, *, when_loaded: bool) -> set[str]:
    """The package's modules that a module imports: when it is loaded itself, or anywhere in its code."""
    found = set()
    for node in MODULES[name].body if when_loaded else ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {one if one in MODULES else node.module for one in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & MODULES.keys()) - {name}


def test_no_modules_import_each_other_when_they_are_loaded() -> None:
    TopologicalSorter(
        {name: imported(name, when_loaded=True) for name in MODULES}
    ).prepare()  # raises, and names the circle


def test_folders_import_from_those_above_them_in_the_tour() -> None:
    tour = re.findall(r"^\| `lightning_scale/(\w+)[/.]", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    parts = {name: name.split(".")[1] for name in MODULES if "." in name}
    assert set(parts.values()) == set(tour), "the tour names every folder and file of the package"
    place = {part: i for i, part in enumerate(tour)}
    up = {
        f"{name} imports {other}"
        for name, part in parts.items()
        for other in imported(name, when_loaded=False) & parts.keys()
        if place[parts[other]] > place[part]
    }
    assert not up


def test_no_package_exports_a_name_that_a_module_beside_it_has() -> None:
    """Else the name would be the one or the other, depending on what was imported before."""
    for found in pkgutil.walk_packages(lightning_scale.__path__, "lightning_scale."):
        if not found.ispkg or found.name.endswith(".triton"):
            continue
        package = importlib.import_module(found.name)
        for module in pkgutil.iter_modules(package.__path__):
            assert isinstance(vars(package).get(module.name, package), ModuleType), f"{found.name}.{module.name}"
