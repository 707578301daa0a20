"""The manifest beside a checkpoint: what each of its files must be for the checkpoint to be whole.

``NAME.manifest.json`` lies beside the file or folder ``NAME``, is written after everything else, and appears at once. A
checkpoint without one was not finished; one that differs from it was cut or changed. (Against accidents: whoever can
change a checkpoint can change its manifest.)
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SUFFIX = ".manifest.json"
_VERSION = 1
_CHUNK = 1 << 22  # bytes
_THREADS = 8  # hashing a large buffer lets other threads run


@dataclass(frozen=True)
class Manifest:
    """What was saved."""

    step: int
    """Optimizer steps."""
    saved_at: int
    """Nanoseconds since 1970, by the clock of the machine of rank 0."""
    training_state: bool
    """Whether training can go on from it; False for weights alone."""
    files: dict[str, tuple[int, str]]
    """Bytes and SHA-256 of each file: by its path inside the folder, or by its name."""


class ManifestError(Exception):
    """Why a checkpoint is not whole."""


def manifest_path(checkpoint: Path) -> Path:
    """Where the manifest of a checkpoint lies."""
    return checkpoint.with_name(checkpoint.name + _SUFFIX)


def checkpoint_path(manifest: Path) -> Path:
    """Which checkpoint a manifest speaks of."""
    return manifest.with_name(manifest.name.removesuffix(_SUFFIX))


def is_manifest(path: Path) -> bool:
    """Whether a file's name is that of a manifest."""
    return path.name.endswith(_SUFFIX)


def write_manifest(checkpoint: Path, step: int, training_state: bool) -> None:
    """Read a checkpoint that is complete, and write its manifest.

    Reads every byte once: about a second for each 2 GB and processor core at work (SHA-256 in hardware), or what the disk
    takes.

    Args:
        checkpoint: A file, or a folder.
        step: Optimizer steps.
        training_state: Whether training can go on from it.
    """
    marks = _for_each(sorted(_files(checkpoint).items()), lambda path: (path.stat().st_size, _sha256(path)))
    content = asdict(Manifest(step, time.time_ns(), training_state, marks)) | {"version": _VERSION}
    manifest = manifest_path(checkpoint)
    temporary = manifest.with_name(f".{manifest.name}.partial")
    with temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, manifest)


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, which need not be whole.

    Raises:
        ManifestError: where there is none, or none that can be read.
    """
    try:
        content = json.loads(manifest_path(checkpoint).read_text())
    except FileNotFoundError:
        raise ManifestError("it has no manifest, so its saving did not end") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"its manifest cannot be read ({error})") from None
    try:
        if content["version"] != _VERSION:
            raise ManifestError(f"its manifest is of version {content['version']}, not {_VERSION}")
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in content["files"].items()}
        return Manifest(int(content["step"]), int(content["saved_at"]), bool(content["training_state"]), files)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ManifestError("its manifest is not one") from None


def check_whole(checkpoint: Path, manifest: Manifest) -> None:
    """Compare a checkpoint with its manifest, sizes first.

    Raises:
        ManifestError: where a file is missing, or is not what was saved.
    """
    found = _files(checkpoint)
    for name, (size, _) in manifest.files.items():
        if name not in found:
            raise ManifestError(f"{name} is missing")
        if (present := found[name].stat().st_size) != size:
            raise ManifestError(f"{name} has {present} bytes of {size}")
    digests = _for_each([(name, found[name]) for name in manifest.files], _sha256)
    for name, (_, digest) in manifest.files.items():
        if digests[name] != digest:
            raise ManifestError(f"{name} is not what was saved (its SHA-256 differs)")


def _files(checkpoint: Path) -> dict[str, Path]:
    """A checkpoint's files by name; none where it is not there."""
    if checkpoint.is_dir():
        return {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    return {checkpoint.name: checkpoint} if checkpoint.is_file() else {}


def _for_each(named: list[tuple[str, Path]], work: Callable[[Path], Any]) -> dict[str, Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip([name for name, _ in named], pool.map(work, [path for _, path in named]), strict=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
