"""An error of somebody's own code comes out as it is, with file and line; a configuration's is one sentence."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from lightning_scale.cli import main
from tests.cli.broken import ERRORS
from tests.cli.test_cli import config

PLACES: dict[str, Any] = {
    "module": lambda error: {"model": {"class_path": "tests.cli.broken.BrokenNet", "init_args": {"error": error}}},
    "data": lambda error: {"data": {"class_path": "tests.cli.broken.BrokenData", "init_args": {"error": error}}},
    "callback": lambda error: {
        "trainer__callbacks": [{"class_path": "tests.cli.broken.BrokenCallback", "init_args": {"error": error}}]
    },
    "optimizer": lambda error: {
        "optimizer": {"class_path": "tests.cli.broken.BrokenSGD", "init_args": {"error": error}}
    },
    "training_step": lambda error: {
        "model": {"class_path": "tests.cli.broken.BrokenStep", "init_args": {"error": error}}
    },
}


@pytest.fixture(autouse=True)
def another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", ERRORS)
def test_the_traceback_names_file_and_line(tmp_path: Path, command: str, place: str, error: str) -> None:
    if command == "plan" and place in ("callback", "training_step"):
        pytest.skip("a plan does not come there in the same way")
    with pytest.raises(Exception) as expected:
        ERRORS[error]()
    with pytest.raises(Exception) as found:
        main([command, "--config", config(tmp_path, **PLACES[place](error))])
    assert type(found.value) is expected.type and str(found.value) == str(expected.value)
    frames = traceback.extract_tb(found.value.__traceback__)
    assert any(frame.filename.endswith("broken.py") for frame in frames)
    assert "Given value" not in "".join(traceback.format_exception(found.value))  # nothing of the parser's


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__init_args__lr": -1.0}, "lr is -1.0"),
        ({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": -1.0}}}, "Invalid learning rate"),
        ({"trainer__max_epochs": "many"}, "trainer.max_epochs: expected int"),
        ({"trainer__accumulate_grad_batches": 2, "trainer__precision": "no such"}, "precision"),
    ],
)
def test_a_configurations_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config(tmp_path, **changes)])
    written = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and said in written and written.startswith("lightning-scale: ")
