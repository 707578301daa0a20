"""``fit --resume``: one command line for the first start and for every restart."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_scale.callbacks import Resume, SaveOnSignal
from lightning_scale.cli import ScaleCLI, main
from tests.cli.test_cli import config

SAVES = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"every_n_train_steps": 2, "monitor": "step", "mode": "max", "save_top_k": 2, "filename": "{step}"},
}


@pytest.fixture(autouse=True)
def another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])


def run(folder: Path, *more: str, steps: int = 5, **changes: object) -> ScaleCLI:
    changes = {
        "trainer__default_root_dir": "run",
        "trainer__callbacks": [SAVES],
        "trainer__max_steps": steps,
        **changes,
    }
    return ScaleCLI(args=["fit", "--config", config(folder, **changes), *more])


def test_the_same_line_starts_and_goes_on(tmp_path: Path) -> None:
    first = run(tmp_path, "--resume", "auto")
    kinds = [type(callback) for callback in first.trainer.callbacks]
    assert kinds.count(Resume) == kinds.count(SaveOnSignal) == 1
    assert len(first.model.rates) == 5
    assert len(run(tmp_path, "--resume", "auto", steps=7).model.rates) == 3  # from step 4
    named = run(tmp_path, "--resume", str(tmp_path / "run/checkpoints/step=4.ckpt"), steps=7)
    assert len(named.model.rates) == 3
    assert len(run(tmp_path, steps=7).model.rates) == 7  # without it nothing is looked for


def test_in_the_configuration_and_beside_callbacks_of_ones_own(tmp_path: Path) -> None:
    mine = {"class_path": "lightning_scale.callbacks.SaveOnSignal", "init_args": {"keep": 5}}
    cli = run(tmp_path, resume="auto", trainer__callbacks=[SAVES, mine])
    assert [callback.keep for callback in cli.trainer.callbacks if isinstance(callback, SaveOnSignal)] == [5]


def test_other_subcommands_do_not_have_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["validate", "--resume", "auto"])
    assert "resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        (["--resume", "auto", "--ckpt_path", "last"], {}, "keep one of them"),
        (["--resume", "auto"], {"trainer__default_root_dir": None}, "give trainer.default_root_dir a folder"),
        (["--resume", "no.ckpt"], {}, "there is no checkpoint no.ckpt"),
        (["--resume", ""], {}, "resume is empty"),
        (["--resume", "auto", "--config", "callbacks/resume.yaml"], {}, "keep one of them"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, options: list[str], changes: dict[str, object], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"trainer__default_root_dir": "run", "trainer__callbacks": [SAVES], **changes}
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config(tmp_path, **changes), *options])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-scale: ")]
    assert len(said) == 1 and expected in said[0]
