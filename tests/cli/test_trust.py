"""What the command runs of files: the classes that the configuration names, and nothing of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lightning_scale.cli import ScaleCLI, main
from tests.checkpoints.traps import Trap
from tests.cli.test_cli import config


@pytest.fixture(autouse=True)
def another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])


def saved(folder: Path) -> Path:
    """A checkpoint after three steps."""
    ScaleCLI(args=["fit", "--config", config(folder, trainer__default_root_dir="run")])
    (file,) = folder.rglob("*.ckpt")
    return file


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_yaml_runs_nothing(tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "sprung"
    file = Path(config(tmp_path))
    file.write_text(file.read_text() + f'\nseed_everything: {tag} ["touch {trap}"]\n')
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(file)])
    assert end.value.code == 2 and not trap.exists()
    assert "python/object" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--ckpt_path", "--resume"])
def test_a_malicious_checkpoint_is_one_sentence(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trap = saved(tmp_path), tmp_path / "sprung"
    torch.save({**torch.load(file, weights_only=True), "more": Trap(trap)}, file)
    capsys.readouterr()
    arguments = ["--config", config(tmp_path, trainer__default_root_dir="run", trainer__max_steps=5)]
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments, option, str(file)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and not trap.exists()
    assert "lightning-scale: " in said and "posix.system" in said and "Traceback" not in said


def test_a_checkpoint_names_no_class(tmp_path: Path) -> None:
    """Lightning's own command imports what a checkpoint's hyper-parameters name."""
    (tmp_path / "named_by_a_file.py").write_text("open('sprung', 'w')\nclass Net: ...\n")
    sys.path.insert(0, str(tmp_path))
    try:
        file = saved(tmp_path)
        more = {"hyper_parameters": {"_class_path": "named_by_a_file.Net"}}
        torch.save({**torch.load(file, weights_only=True), **more}, file)
        arguments = ["--config", config(tmp_path, trainer__default_root_dir="run", trainer__max_steps=5)]
        cli = ScaleCLI(args=["fit", *arguments, "--ckpt_path", str(file)])
    finally:
        sys.path.remove(str(tmp_path))
    assert cli.trainer.global_step == 5 and not (tmp_path / "sprung").exists()
