"""A checkpoint is whole where it agrees with its manifest: every cut and every changed bit is found, and named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lightning_scale.checkpoints.manifest import (
    ManifestError,
    check_whole,
    manifest_path,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "step=3.ckpt"
    path.write_bytes(bytes(range(256)) * 40)
    write_manifest(path, 3, True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "step=4.ckpt"
    (path / "checkpoint").mkdir(parents=True)
    for name in ("meta.pt", "checkpoint/rank0", "checkpoint/rank1"):
        (path / name).write_bytes(name.encode() * 100)
    (path / "empty").touch()
    write_manifest(path, 4, True)
    return path


def fault(checkpoint: Path) -> str:
    with pytest.raises(ManifestError) as error:
        check_whole(checkpoint, read_manifest(checkpoint))
    return str(error.value)


def test_says_what_was_saved(file: Path, folder: Path) -> None:
    content = json.loads((file.parent / "step=3.ckpt.manifest.json").read_text())
    assert content["files"] == {"step=3.ckpt": [10240, hashlib.sha256(file.read_bytes()).hexdigest()]}
    assert (content["step"], content["training_state"]) == (3, True)
    manifest = read_manifest(folder)
    assert set(manifest.files) == {"meta.pt", "checkpoint/rank0", "checkpoint/rank1", "empty"}
    assert manifest.saved_at > read_manifest(file).saved_at
    for checkpoint in (file, folder):
        check_whole(checkpoint, read_manifest(checkpoint))
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "step=3.ckpt", "step=3.ckpt.manifest.json", "step=4.ckpt", "step=4.ckpt.manifest.json",
    ]  # fmt: skip


@pytest.mark.parametrize("at", [0, 5000, 10239])
def test_one_changed_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert "step=3.ckpt is not what was saved" in fault(file)


@pytest.mark.parametrize("size", [0, 10239, 10241])
def test_another_size(file: Path, size: int) -> None:
    file.write_bytes((file.read_bytes() * 2)[:size])
    assert fault(file) == f"step=3.ckpt has {size} bytes of 10240"


def test_a_folder_without_one_of_its_files(folder: Path) -> None:
    (folder / "checkpoint/rank1").unlink()
    assert fault(folder) == "checkpoint/rank1 is missing"


def test_a_folder_with_a_changed_file(folder: Path) -> None:
    (folder / "meta.pt").write_bytes(b"x" * 700)
    assert "meta.pt is not what was saved" in fault(folder)


def test_a_file_where_a_folder_was(folder: Path, file: Path) -> None:
    manifest = read_manifest(folder)
    with pytest.raises(ManifestError, match="is missing"):
        check_whole(file, manifest)


def test_more_files_do_no_harm(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    check_whole(folder, read_manifest(folder))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "cannot be read"),
        ('{"version": 1, "st', "cannot be read"),
        ("[]", "is not one"),
        ('{"version": 1}', "is not one"),
        ('{"version": 1, "step": 1, "saved_at": 1, "training_state": true, "files": {"x": 3}}', "is not one"),
        ('{"version": 2}', "of version 2"),
    ],
)
def test_a_manifest_that_is_none(file: Path, content: str, expected: str) -> None:
    manifest_path(file).write_text(content)
    with pytest.raises(ManifestError, match=expected):
        read_manifest(file)


def test_none(file: Path) -> None:
    manifest_path(file).unlink()
    with pytest.raises(ManifestError, match="its saving did not end"):
        read_manifest(file)
