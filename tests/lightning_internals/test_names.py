"""One list has every name of Lightning's that is relied on, and a version without one of them is named in a sentence."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonargparse
import lightning
import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities.migration.utils import _RedirectingUnpickler

import lightning_scale
from lightning_scale.lightning_internals import CheckpointAccess, LoopAccess, after_lightnings_handlers, names
from lightning_scale.lightning_internals.checks import Name, check_classes
from lightning_scale.lightning_internals.command_line import optimizers_added, option_names
from lightning_scale.lightning_internals.names import NAMES
from lightning_scale.strategies import fsdp2, plain_folder
from lightning_scale.strategies.zero.deepspeed_internals import NAMES as DEEPSPEED_NAMES
from tests.distributed.zero_runs import needs_deepspeed

PACKAGE = Path(lightning_scale.__file__).parent
VERSIONS = {"lightning": lightning.__version__, "jsonargparse": jsonargparse.__version__}
OF_CLASSES = [entry for entry in NAMES if not entry.on_instance]
OF_INSTANCES = [entry for entry in NAMES if entry.on_instance]


def label(entry: Name) -> str:
    return f"{entry.owner.rpartition(':')[2]}.{entry.name}"


def sentence(entry: Name, version: str) -> str:
    return re.escape(f"{entry.package} {version} has no {label(entry)}, which lightning_scale relies on: use a version")


def take_away(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if neither a class nor those above it, or a module, had ever had the name."""
    for holder in [owner] if isinstance(owner, ModuleType) else owner.__mro__:
        if name in vars(holder):
            monkeypatch.delattr(holder, name)
        if name in vars(holder).get("__dataclass_fields__", ()):
            monkeypatch.delitem(holder.__dataclass_fields__, name)


class Without:
    """Has every attribute but one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if name == self.name:
            raise AttributeError(name)
        return self


def test_nothing_is_listed_twice() -> None:
    for listed in (NAMES, DEEPSPEED_NAMES):
        assert len({(entry.owner, entry.name) for entry in listed}) == len(listed)


@pytest.mark.parametrize("entry", OF_CLASSES, ids=label)
def test_a_class_without_a_name_is_named_with_the_version(entry: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    check_classes(NAMES)
    take_away(pkgutil.resolve_name(entry.owner), entry.name, monkeypatch)
    with pytest.raises(RuntimeError, match=sentence(entry, VERSIONS[entry.package])):
        check_classes([entry])
    with pytest.raises(RuntimeError, match="which lightning_scale relies on"):
        check_classes(NAMES)


@pytest.mark.parametrize("entry", OF_INSTANCES, ids=label)
def test_an_instance_without_a_name_is_named_with_the_version(entry: Name) -> None:
    names.check(entry.owner, Without("nothing"))
    with pytest.raises(RuntimeError, match=sentence(entry, VERSIONS[entry.package])):
        names.check(entry.owner, Without(entry.name))


@needs_deepspeed
@pytest.mark.parametrize("entry", DEEPSPEED_NAMES, ids=label)
def test_deepspeed_without_a_name_is_named_with_the_version(entry: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    from lightning_scale.strategies.zero import deepspeed_internals

    deepspeed_internals.check_installed()
    said = sentence(entry, deepspeed.__version__)
    if entry.on_instance:
        with pytest.raises(RuntimeError, match=said):
            deepspeed_internals.check(entry.owner, Without(entry.name))
        return
    take_away(pkgutil.resolve_name(entry.owner), entry.name, monkeypatch)
    if entry.needed:
        with pytest.raises(RuntimeError, match=said):
            deepspeed_internals.check_installed()
    else:
        deepspeed_internals.check_installed()


@pytest.mark.parametrize("entry", [*plain_folder.TORCHS_NAMES, *fsdp2.TORCHS_NAMES], ids=label)
def test_torch_without_what_keeps_code_from_running(entry: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(pkgutil.resolve_name(entry.owner), entry.name, monkeypatch)
    with pytest.raises(RuntimeError, match=sentence(entry, torch.__version__)):
        check_classes((*plain_folder.TORCHS_NAMES, *fsdp2.TORCHS_NAMES))


def test_the_check_comes_with_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.delattr(LightningCLI, "_parse_ckpt_path")
    monkeypatch.delitem(sys.modules, names.__name__)
    with pytest.raises(RuntimeError, match=rf"lightning {lightning.__version__} has no LightningCLI._parse_ckpt_path"):
        importlib.import_module(names.__name__)


def test_a_class_that_has_moved_is_named_too() -> None:
    moved = Name("lightning.pytorch.loops.fit_loop:_Moved", "run", "called", "nothing")
    with pytest.raises(RuntimeError, match=sentence(moved, lightning.__version__)):
        check_classes([moved])


LOOPS = {
    names.TRAINER: lambda trainer: trainer,
    names.FIT_LOOP: lambda trainer: trainer.fit_loop,
    names.EPOCH_LOOP: lambda trainer: trainer.fit_loop.epoch_loop,
    names.VALIDATION_LOOP: lambda trainer: trainer.fit_loop.epoch_loop.val_loop,
    names.OPTIMIZATION: lambda trainer: trainer.fit_loop.epoch_loop.automatic_optimization,
}


@pytest.mark.parametrize("entry", [entry for entry in OF_INSTANCES if entry.owner in LOOPS], ids=label)
def test_accessors_look_at_what_they_are_given(entry: Name) -> None:
    def trainer() -> L.Trainer:
        made = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        delattr(LOOPS[entry.owner](made), entry.name)
        return made

    with pytest.raises(RuntimeError, match=sentence(entry, lightning.__version__)):
        LoopAccess(trainer())
    if entry.owner == names.TRAINER:
        with pytest.raises(RuntimeError, match=sentence(entry, lightning.__version__)):
            CheckpointAccess(trainer())
        with pytest.raises(RuntimeError, match=sentence(entry, lightning.__version__)):
            after_lightnings_handlers(trainer(), lambda: None)


def test_parsers_and_strategies_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    from lightning_scale.strategies import FSDP2Strategy

    with pytest.raises(RuntimeError, match=r"jsonargparse \S+ has no ArgumentParser\._actions"):
        option_names(Without("_actions"))
    with pytest.raises(RuntimeError, match=r"has no LightningArgumentParser\._lr_schedulers"):
        optimizers_added(Without("_lr_schedulers"))  # type: ignore[arg-type]
    monkeypatch.setattr(ModelParallelStrategy, "__init__", lambda self, **options: None)
    with pytest.raises(RuntimeError, match=r"has no ModelParallelStrategy\._process_group_backend"):
        FSDP2Strategy()


# -- nothing else is used ----------------------------------------------------------------------------------------------


# While Lightning loads a checkpoint, pickle.Unpickler is a class of its own: a module that is imported then derives from it.
UNPICKLERS = {_RedirectingUnpickler}


def test_every_override_is_listed() -> None:
    """A method that overrides one of Lightning's, in any class of the package, is in the list for that class."""
    for module in pkgutil.walk_packages(lightning_scale.__path__, "lightning_scale."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    listed: dict[str, set[type]] = {}
    for entry in NAMES:
        owner = pkgutil.resolve_name(entry.owner) if entry.owner != names.SUBCOMMANDS else None
        if isinstance(owner, type):
            listed.setdefault(entry.name, set()).add(owner)
    unlisted = []
    for cls in package_classes():
        theirs = [base for base in cls.__mro__ if base.__module__.split(".")[0] in VERSIONS and base not in UNPICKLERS]
        for name in vars(cls):
            if name.startswith("__") or name == "_abc_impl" or not any(name in vars(base) for base in theirs):
                continue
            if not listed.get(name, set()).intersection(theirs):
                unlisted.append(f"{cls.__qualname__}.{name}")
    assert unlisted == []


def package_classes() -> set[type]:
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "lightning_scale"]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return {cls for cls in found if cls.__module__.split(".")[0] == "lightning_scale"}


# Of torch's storages, of numba's kernels, of Python's modules and of named tuples.
OTHERS = re.compile(r"_cdata|_local_tensor|_spec|_cache|_exit|_current_frames|_fields|_replace|_asdict")
ALLOWED = {"overridden", "called", "read", "set"}  # by a subclass, of itself


def test_private_names_are_used_nowhere_else() -> None:
    """Outside of the folder only a subclass touches a private name of Lightning's, of its own instance, and it is listed."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    listed = {entry.name for entry in (*NAMES, *DEEPSPEED_NAMES) if entry.name.startswith("_")}
    of_subclasses = {entry.name for entry in NAMES if entry.use in ALLOWED}
    wrong = []
    for path, tree in trees.items():
        if path.parent.name == "lightning_internals" or path.stem == "deepspeed_internals":
            continue
        in_zero = path.parent.name == "zero"
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in listed:
                wrong.append((path, node.lineno, node.value))
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (*VERSIONS, "deepspeed"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                wrong += [(path, node.lineno, name) for name in private]
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-zA-Z]", node.attr):
                continue
            name = node.attr
            on_itself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            on_itself |= isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            if on_itself and (name in of_subclasses or name in own - listed):
                continue
            if in_zero and name in {entry.name for entry in DEEPSPEED_NAMES}:
                continue
            if path.stem == "fsdp2" and name in {entry.name for entry in fsdp2.TORCHS_NAMES}:
                continue
            of_torch = re.match(r"torch\b", ast.unparse(node.value)) or OTHERS.fullmatch(name)
            if not on_itself and (name in own - listed or of_torch):
                continue
            wrong.append((path, node.lineno, name))
    said = [f"{path.relative_to(PACKAGE)}:{line} {name}" for path, line, name in wrong]
    assert said == []


def test_what_the_folder_uses_is_listed() -> None:
    """Each private name in the folder, and each attribute of the loops, the Trainer's parts and DeepSpeed's wrappers."""
    listed = {entry.name for entry in (*NAMES, *DEEPSPEED_NAMES)}
    theirs = re.compile(
        r"self\._(fit_loop|epoch_loop)|self\._epoch_loop\.val_loop|combined|batches|progress|tracker|loop"
    )
    theirs_in_zero = re.compile(r"w|wrapper|self\.wrapper|w\.wrapper")
    unlisted = []
    folders = [PACKAGE / "lightning_internals", PACKAGE / "strategies/zero"]
    trees = {path: ast.parse(path.read_text()) for folder in folders for path in folder.glob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    for path, tree in trees.items():
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            holder = ast.unparse(node.value)
            if path.parent.name == "zero":
                relied_on = bool(theirs_in_zero.fullmatch(holder))
            else:
                relied_on = bool(theirs.fullmatch(holder)) or (
                    node.attr.startswith("_") and node.attr not in own - listed
                )
            if relied_on and node.attr not in listed and not node.attr.startswith("__"):
                unlisted.append(f"{path.name}:{node.lineno} {holder}.{node.attr}")
    assert not unlisted, "\n".join(unlisted)


def defined(tree: ast.Module) -> set[str]:
    """Private names that a module of the package gives to its own functions, methods and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
