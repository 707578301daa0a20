"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_scale.checkpoints import chosen_path, newest_whole
from lightning_scale.checkpoints.manifest import manifest_path, write_manifest
from lightning_scale.errors import ConfigurationError


def save(path: Path, step: int, training_state: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{path} {step}")
    write_manifest(path, step, training_state)
    return path


def skipped(folders: list[Path]) -> list[str]:
    return [f"{Path(path).name}: {fault}" for path, fault in newest_whole(folders).skipped]


def test_the_last_saved_over_all_folders_whatever_its_step(tmp_path: Path) -> None:
    save(tmp_path / "a/step=9.ckpt", 9)
    newest = save(tmp_path / "b/step=5.ckpt", 5)
    save(tmp_path / "a/weights.ckpt", 9, training_state=False)
    (tmp_path / "a/last.ckpt").symlink_to("step=9.ckpt")
    (tmp_path / "a/other.txt").write_text("no checkpoint")
    choice = newest_whole([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert (choice.path, choice.step, choice.skipped) == (str(newest), 5, [])


def test_damaged_ones_are_named_and_passed_over(tmp_path: Path) -> None:
    older = save(tmp_path / "1.ckpt", 1)
    cut, changed, unreadable = (save(tmp_path / f"{step}.ckpt", step) for step in (2, 3, 4))
    cut.write_text("")
    changed.write_text(changed.read_text().replace("3", "4"))
    manifest_path(unreadable).write_text("{")
    (tmp_path / "5.ckpt").mkdir()  # begun, not ended
    choice = newest_whole([tmp_path])
    assert (choice.path, choice.step) == (str(older), 1)
    said = skipped([tmp_path])
    assert [line.split(":")[0] for line in said] == ["5.ckpt", "4.ckpt", "3.ckpt", "2.ckpt"]
    assert "did not end" in said[0] and "bytes of" in said[3]


def test_what_is_older_than_the_one_chosen_is_not_spoken_of(tmp_path: Path) -> None:
    (tmp_path / "0.ckpt").write_text("half")
    os.utime(tmp_path / "0.ckpt", (1, 1))
    save(tmp_path / "1.ckpt", 1)
    assert skipped([tmp_path]) == []


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "half.ckpt").write_text("half")
    assert newest_whole([tmp_path / "none"]).path is None
    choice = newest_whole([tmp_path])
    assert choice.path is None and len(choice.skipped) == 1


def test_a_path_that_is_named(tmp_path: Path) -> None:
    good = save(tmp_path / "1.ckpt", 1)
    assert chosen_path(str(good)).step == 1
    manifest_path(good).unlink()
    assert chosen_path(str(good)).path == str(good)  # something else has written it
    bad, weights = save(tmp_path / "2.ckpt", 2), save(tmp_path / "3.ckpt", 3, training_state=False)
    bad.write_text("cut")
    for path, expected in (
        (bad, "bytes of"),
        (weights, "weights alone"),
        (tmp_path / "4.ckpt", "there is no checkpoint"),
    ):
        with pytest.raises(ConfigurationError, match=expected):
            chosen_path(str(path))
