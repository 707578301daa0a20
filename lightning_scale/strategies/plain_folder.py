"""FSDP2's checkpoint folders, read so that nothing in them is run.

torch's own reader unpickles ``.metadata``, and its planner every value that is no tensor, with whatever they ask for; in
Lightning's way of loading, weights have changed by the time that the last of them is read. Only this file knows the
format of those folders.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import filesystem as torchs_filesystem
from torch.distributed.checkpoint import metadata as torchs_metadata
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from lightning_scale.checkpoints.plain import load_plain, refusing, unsafe
from lightning_scale.errors import UnsafeCheckpointError
from lightning_scale.lightning_internals.checks import Name, check_classes
from lightning_scale.strategies.named_state import load_named, names_of, room
from lightning_scale.strategies.whole_state import plain_name, refuse_other_weights

# Were these called otherwise in another version of torch, the classes below would keep nothing from running, without a word.
TORCHS_NAMES = (
    Name(
        "torch.distributed.checkpoint.default_planner:DefaultLoadPlanner",
        "load_bytes",
        "overridden",
        "no code in values",
    ),
    Name(
        "torch.distributed.checkpoint.filesystem:FileSystemReader", "read_metadata", "overridden", "no code in metadata"
    ),
)
check_classes(TORCHS_NAMES)

_TENSORS = ".metadata"
_REST = "meta.pt"  # what is no tensor of model or optimizer: Lightning's


def is_folder(path: Path) -> bool:
    """Whether a checkpoint is a folder into which every rank has written its share."""
    return path.is_dir() and (path / _REST).is_file()


def load_folder(
    path: Path, module: nn.Module, optimizers: Sequence[Optimizer], strict: bool, trusted: bool = False
) -> dict[str, Any]:
    """Load a folder into a sharded module and its optimizers; all ranks call it.

    Everything in it that could ask for code is read before anything is changed. State that was not saved does not exist yet.

    Args:
        path: The folder that every rank has written its share into.
        module: The sharded module.
        optimizers: The module's optimizers, in the order in which they were saved.
        strict: As ``load_state_dict``'s.
        trusted: Whether it may run whatever code it asks for.

    Returns:
        The rest of the checkpoint.

    Raises:
        UnsafeCheckpointError: where something in it is more than tensors and plain values; nothing was changed.
        ConfigurationError: where its weights are not this module's.
    """
    if trusted:
        rest: dict[str, Any] = torch.load(path / _REST, map_location="cpu", weights_only=False)
        planner, reader = DefaultLoadPlanner, FileSystemReader
    else:
        rest, planner, reader = load_plain(path / _REST), Planner, Reader
    metadata = reader(path).read_metadata()
    if not trusted:
        values = [name for name, kind in metadata.state_dict_metadata.items() if type(kind) is _VALUE]
        _load(path, dict.fromkeys(values), planner(flatten_state_dict=False), reader(path), no_dist=True)

    weights = get_model_state_dict(module)
    saved = {where[1] for where in _places(metadata, "state_dict").values()}
    if strict:
        refuse_other_weights(saved, weights)
    weights = {name: value for name, value in weights.items() if name in saved}
    _load(path, {"state_dict": weights}, planner(), reader(path))
    set_model_state_dict(module, weights, options=StateDictOptions(strict=strict))
    for number, optimizer in enumerate(optimizers):
        found = _optimizer(path, f"optimizer_{number}", metadata, optimizer, module, planner, reader)
        if found is not None:
            load_named(optimizer, module, found)
    return rest


def _places(metadata: Metadata, key: str) -> dict[str, tuple[Any, ...]]:
    """What was saved under a key, flat name by flat name: where each stood in the dicts and lists of that."""
    known = metadata.planner_data.items()
    return {flat: where for flat, where in known if isinstance(where, tuple) and where[:1] == (key,)}


def _optimizer(
    path: Path,
    key: str,
    metadata: Metadata,
    optimizer: Optimizer,
    module: nn.Module,
    planner: type[DefaultLoadPlanner],
    reader: type[FileSystemReader],
) -> dict[str, Any] | None:
    """What was saved of an optimizer, by its parameters' names: of each this rank's share. None: nothing was."""
    params = {
        name: p
        for group, names in zip(optimizer.param_groups, names_of(optimizer, module), strict=True)
        for p, all_of in zip(group["params"], names, strict=True)
        for name in all_of
    }
    places = _places(metadata, key)
    states: dict[str, set[str]] = {}
    for where in places.values():
        if where[1] == "state":
            states.setdefault(where[2], set()).add(where[3])
    flats: dict[str, Any] = {}
    for flat, where in places.items():
        kind = metadata.state_dict_metadata[flat]
        p = params.get(plain_name(where[2])) if where[1] == "state" else None
        if where[1] == "state" and p is None:
            continue  # of a parameter that is no more
        if isinstance(kind, TensorStorageMetadata):
            among = dict.fromkeys(states[where[2]]) if p is not None else {}
            size, dtype = kind.size, kind.properties.dtype
            flats[flat] = torch.empty(size, dtype=dtype) if p is None else room(p, where[3], size, dtype, among)
        else:
            flats[flat] = None
    if not flats:
        return None
    _load(path, flats, planner(flatten_state_dict=False, flatten_sharded_tensors=False), reader(path))
    found = {"state": {}, **unflatten_state_dict(flats, places)[key]}  # type: ignore[arg-type]
    return found


class Planner(DefaultLoadPlanner):
    """torch's, where values that are no tensors come without code."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # torch's own unpickles with whatever is asked for: it is given a pickle of what was found without.
        again = io.BytesIO()
        torch.save(load_plain(value, read_item.dest_index.fqn), again)
        again.seek(0)
        super().load_bytes(read_item, again)


class Reader(FileSystemReader):
    """torch's, where the metadata come without code."""

    def read_metadata(self) -> Metadata:  # type: ignore[override]
        """Read the metadata that all ranks share."""
        metadata = _read_metadata(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _load(
    path: Path, state: dict[str, Any], planner: DefaultLoadPlanner, reader: FileSystemReader, no_dist: bool = False
) -> None:
    try:
        load(state, storage_reader=reader, planner=planner, no_dist=no_dist)
    except CheckpointException as error:  # of all ranks
        for fault, _ in error.failures.values():
            if isinstance(fault, UnsafeCheckpointError):
                raise fault from None
        raise


def _read_metadata(path: Path) -> Metadata:
    with (path / _TENSORS).open("rb") as file, refusing(path / _TENSORS):
        found = _Unpickler(file).load()
    if not isinstance(found, Metadata):
        raise unsafe(path / _TENSORS, f"it holds a {type(found).__name__}")
    return found


_VALUE = BytesStorageMetadata
_MODULES = (torchs_metadata.__name__, torchs_filesystem.__name__)
_FUNCTIONS = {("torch.serialization", "_get_layout"), ("collections", "OrderedDict")}  # the first looks into a table


class _Unpickler(pickle.Unpickler):
    """Knows torch's own descriptions of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if "." not in name:
            if (module, name) in _FUNCTIONS or module in _MODULES:
                found = super().find_class(module, name)
                if (module, name) in _FUNCTIONS or _describes(found, module):
                    return found
            elif module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
                return getattr(torch, name)
            elif module.split(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath", "PurePosixPath"):
                return pathlib.PurePosixPath  # where it was saved, perhaps on another system
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def _describes(found: Any, module: str) -> bool:
    """Whether a class of torch's holds values and does nothing."""
    if not (isinstance(found, type) and found.__module__ == module):
        return False
    return hasattr(found, "__dataclass_fields__") or issubclass(found, Enum)


__all__ = ["Planner", "Reader", "is_folder", "load_folder"]
