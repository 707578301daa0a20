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
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.optim import Optimizer

from lightning_scale.checkpoints.plain import load_plain, refusing, unsafe
from lightning_scale.errors import UnsafeCheckpointError
from lightning_scale.lightning_internals.checks import Name, check_classes

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


def load_folder(path: Path, module: nn.Module, optimizers: Sequence[Optimizer], strict: bool) -> dict[str, Any]:
    """Load a folder into a sharded module and its optimizers; all ranks call it.

    Everything in it that could ask for code is read before anything is changed.

    Args:
        path: The folder that every rank has written its share into.
        module: The sharded module.
        optimizers: The module's optimizers, in the order in which they were saved.
        strict: As ``load_state_dict``'s.

    Returns:
        The rest of the checkpoint.

    Raises:
        UnsafeCheckpointError: where something in it is more than tensors and plain values; nothing was changed.
    """
    rest: dict[str, Any] = load_plain(path / _REST)
    values = [name for name, kind in _read_metadata(path).state_dict_metadata.items() if type(kind) is _VALUE]
    _load(path, dict.fromkeys(values), Planner(flatten_state_dict=False), no_dist=True)

    state: dict[str, Any] = {"state_dict": get_model_state_dict(module)}
    _load(path, state, Planner())
    module.load_state_dict(state["state_dict"], strict=strict)
    for number, optimizer in enumerate(optimizers):
        key = f"optimizer_{number}"
        state = {key: get_optimizer_state_dict(module, optimizer)}
        _load(path, state, Planner())
        options = StateDictOptions(cpu_offload=True)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=state[key], options=options)
    return rest


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


def _load(path: Path, state: dict[str, Any], planner: Planner, no_dist: bool = False) -> None:
    try:
        load(state, storage_reader=Reader(path), planner=planner, no_dist=no_dist)
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
