"""Where a run keeps its checkpoints, and which of them it goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.checkpoints.manifest import (
    ManifestError,
    check_whole,
    checkpoint_path,
    is_manifest,
    manifest_path,
    read_manifest,
)
from lightning_scale.errors import ConfigurationError

_EXTENSION = ".ckpt"


@dataclass
class Choice:
    """What a run goes on from, and which checkpoints were passed over for it."""

    path: str | None = None
    """The checkpoint; ``None`` where the run starts anew."""
    step: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Those newer than the one chosen, newest first: each path, and what is wrong with it."""


def checkpoint_folders(trainer: L.Trainer) -> list[Path]:
    """The folders of every ModelCheckpoint; one that has none yet is given ``checkpoints`` in ``default_root_dir``.

    Lightning would give it the logger's folder of this start: the next start would not look there.

    Raises:
        ConfigurationError: for a folder that is not of the local file system.
    """
    default = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
    folders = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is None:
                callback.dirpath = default
            folders.append(str(callback.dirpath))
    for folder in folders or [trainer.default_root_dir]:
        if "://" in folder:
            raise ConfigurationError(
                f"checkpoints go to {folder}, and resume looks for whole ones in local folders: use a mounted one."
            )
    return [Path(folder) for folder in dict.fromkeys(folders or [default])]


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
            if checkpoint.is_symlink() or not (
                checkpoint.exists() and (checkpoint != entry or _has_the_extension(entry))
            ):
                continue
            try:
                found[checkpoint] = read_manifest(checkpoint).saved_at
            except ManifestError:
                found[checkpoint] = checkpoint.stat().st_mtime_ns
    return [(time, path) for path, time in found.items()]


def _has_the_extension(path: Path) -> bool:
    return path.suffix == _EXTENSION
