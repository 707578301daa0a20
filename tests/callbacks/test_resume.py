"""Going on from the newest whole checkpoint, in Python."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lightning_scale.callbacks import Resume
from lightning_scale.checkpoints import WholeFileIO
from lightning_scale.errors import ConfigurationError, UnsafeCheckpointError
from tests.toys import Boom, Tally, indices, trainer


def fit(
    root: Path, steps: int, resume: str = "auto", save: ModelCheckpoint | None = None, more: Any = (), **options: Any
) -> Tally:
    """From wherever `Resume` finds, to the given step; sample i is step i's."""
    module = Tally(20)
    callbacks = [
        Resume(resume),
        save or ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, filename="{step}"),
        *more,
    ]
    ckpt_path = options.pop("ckpt_path", None)
    run = trainer(root, callbacks, max_steps=steps, enable_checkpointing=True, **options)
    run.fit(module, indices(20, 1), ckpt_path=ckpt_path)
    return module


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_goes_on_where_the_newest_whole_one_is(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    assert len(fit(tmp_path, 5).gradients) == 5
    assert names(saved) == [f"step={n}.ckpt{end}" for n in (2, 4) for end in ("", ".manifest.json")]
    assert len(fit(tmp_path, 7).gradients) == 3

    newest = saved / "step=6.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(
        UserWarning, match=r"step=6\.ckpt is not whole and is passed over: step=6\.ckpt has 1000 bytes of"
    ):
        assert len(fit(tmp_path, 7).gradients) == 3
    assert len(fit(tmp_path, 7, resume=str(saved / "step=2.ckpt")).gradients) == 5
    with pytest.raises(ConfigurationError, match="cannot be gone on from"):
        fit(tmp_path, 7, resume=str(newest))


def test_a_removed_checkpoint_takes_its_manifest_along(tmp_path: Path) -> None:
    fit(tmp_path, 9, save=ModelCheckpoint(every_n_train_steps=2, filename="{step}"))
    assert names(tmp_path / "checkpoints") == ["step=8.ckpt", "step=8.ckpt.manifest.json"]


def test_a_folder_of_its_own_is_kept_and_searched(tmp_path: Path) -> None:
    for steps, taken in ((4, 4), (6, 2)):
        save = ModelCheckpoint(tmp_path / "mine", every_n_train_steps=2, save_top_k=-1, filename="{step}")
        assert len(fit(tmp_path, steps, save=save).gradients) == taken
    assert not (tmp_path / "checkpoints").exists()


def test_weights_alone_are_not_gone_on_from(tmp_path: Path) -> None:
    save = ModelCheckpoint(every_n_train_steps=2, save_weights_only=True)
    fit(tmp_path, 4, save=save)
    (manifest,) = (tmp_path / "checkpoints").glob("*.json")
    assert json.loads(manifest.read_text())["training_state"] is False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*passed over.*")
        assert len(fit(tmp_path, 4).gradients) == 4


def test_a_checkpoint_written_on_an_exception_counts(tmp_path: Path) -> None:
    save = ModelCheckpoint(every_n_train_steps=100, save_on_exception=True, filename="{step}")
    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path, 9, save=save, more=[Boom(4)])
    assert len(fit(tmp_path, 9).gradients) == 4


def test_two_answers_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, 4)
    with pytest.raises(ConfigurationError, match="keep one of them"):
        fit(tmp_path, 4, ckpt_path=str(tmp_path / "checkpoints/step=2.ckpt"))


def test_what_cannot_be_seen_or_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="AsyncCheckpointIO"):
        fit(tmp_path, 4, plugins=[AsyncCheckpointIO()])
    with pytest.raises(ConfigurationError, match="local folders"):
        fit(tmp_path, 4, save=ModelCheckpoint("memory://saved"))


def test_the_trainer_is_as_before_when_fit_is_over(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Resume()], max_steps=2, enable_checkpointing=True)
    run.fit(Tally(20), indices(20, 1))
    assert not {"save_checkpoint", "remove_checkpoint"} & vars(run.strategy).keys()
    assert "resume_start" not in vars(run._checkpoint_connector)
    run.fit(Tally(20), indices(20, 1))  # the same callback again


def test_a_plugin_of_the_users_stays(tmp_path: Path) -> None:
    class Mine(TorchCheckpointIO):
        pass

    for plugins, kind in (([Mine()], Mine), ([], WholeFileIO)):
        run = trainer(tmp_path, [Resume()], max_steps=1, enable_checkpointing=True, plugins=plugins)
        run.fit(Tally(20), indices(20, 1))
        assert type(run.strategy.checkpoint_io) is kind


def test_loading_runs_no_code(tmp_path: Path) -> None:
    """``torch.load`` refuses what is not plain, also where a manifest vouches for it."""
    from lightning_scale.checkpoints.manifest import write_manifest

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    fit(tmp_path, 4)
    newest = tmp_path / "checkpoints/step=4.ckpt"
    content = torch.load(newest, weights_only=True)
    torch.save({**content, "more": Evil()}, newest)
    write_manifest(newest, 4, True)
    with pytest.raises(UnsafeCheckpointError, match="was not loaded"):
        fit(tmp_path, 6)
    assert not (tmp_path / "ran").exists()


def test_a_cut_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ckpt"
    WholeFileIO().save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        WholeFileIO().save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.ckpt"]
    assert torch.load(path, weights_only=True)["a"].equal(torch.ones(3))


def test_only_fit_is_changed(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Resume()])
    module = Validated(20)
    run.validate(module, indices(4, 1))
    assert "save_checkpoint" not in vars(run.strategy)


class Validated(Tally):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass
