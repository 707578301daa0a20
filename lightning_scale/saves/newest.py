"""The newest whole checkpoint of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lightning_scale.errors import ConfigurationError
from lightning_scale.saves.manifest import (
    ManifestError,
    check_whole,
    checkpoint_path,
    is_manifest,
    manifest_path,
    read_manifest,
)

_EXTENSION = ".ckpt"


@dataclass
class Choice:
    """What a run goes on from, and which checkpoints were passed over for it."""

    path: str | None = None
    """None: it starts anew."""
    step: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Path and what is wrong with it, newest first; only those that are newer than the one chosen."""


def newest_whole(folders: Iterable[Path]) -> Choice:
    """Look through folders, newest checkpoint first, for one that is whole and that training can go on from.

    Only as many are read as it takes to find one. Links are left out, for what they point to is there too, and so are
    checkpoints of weights alone.
    """
    choice = Choice()
    for _, checkpoint in sorted(_dated(folders), reverse=True):
        try:
            manifest = read_manifest(checkpoint)
            if not manifest.training_state:
                continue
            check_whole(checkpoint, manifest)
        except ManifestError as fault:
            choice.skipped.append((str(checkpoint), str(fault)))
        else:
            choice.path, choice.step = str(checkpoint), manifest.step
            break
    return choice


def chosen_path(path: str) -> Choice:
    """One checkpoint that somebody has named; it may have no manifest, if something else has written it.

    Raises:
        ConfigurationError: where it is not there, or not whole.
    """
    checkpoint = Path(path)
    if not checkpoint.exists():
        raise ConfigurationError(f"resume: there is no checkpoint {path}: name an existing one, or write auto.")
    try:
        if manifest_path(checkpoint).exists():
            manifest = read_manifest(checkpoint)
            check_whole(checkpoint, manifest)
            if not manifest.training_state:
                raise ManifestError("it holds weights alone")
            return Choice(path, manifest.step)
    except ManifestError as fault:
        raise ConfigurationError(f"resume: {path} cannot be gone on from: {fault}. Name another one.") from None
    return Choice(path)


def _dated(folders: Iterable[Path]) -> list[tuple[int, Path]]:
    """All that may be checkpoints, with the time of saving in ns."""
    found: dict[Path, int] = {}
    for folder in dict.fromkeys(folders):
        for entry in folder.iterdir() if folder.is_dir() else ():
            checkpoint = checkpoint_path(entry) if is_manifest(entry) else entry
            if checkpoint.is_symlink() or not (checkpoint.exists() and (checkpoint != entry or _looks_like_one(entry))):
                continue
            try:
                found[checkpoint] = read_manifest(checkpoint).saved_at
            except ManifestError:
                found[checkpoint] = checkpoint.stat().st_mtime_ns
    return [(time, path) for path, time in found.items()]


def _looks_like_one(path: Path) -> bool:
    return path.suffix == _EXTENSION
