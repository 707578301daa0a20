"""The quick study through the command: complete, resumed after a kill, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.scaling_study import __main__ as command
from examples.scaling_study.__main__ import main
from examples.scaling_study.jobs import due, total
from examples.scaling_study.rows import RowFile
from examples.scaling_study.settings import Settings, quick
from examples.scaling_study.tasks import TASKS

_ROOT = Path(__file__).parents[3]


def _command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "examples.scaling_study", "--quick", "--device=cpu", f"--dir={folder}", *more]


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            child, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found |= {child, *_children(child)}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_killed_study_goes_on_and_ends_with_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, settings = tmp_path / "study", quick("cpu")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
    with (tmp_path / "log").open("w") as log:
        study = subprocess.Popen(
            _command(folder, "--workers=2"), cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        file = folder / "rows.csv"
        _wait(lambda: file.exists() and len(file.read_text().splitlines()) >= 4, study, tmp_path / "log")
        workers = _children(study.pid)
        study.send_signal(signal.SIGKILL)
        study.wait()
    assert workers
    _wait(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), None, tmp_path / "log")
    before = RowFile(file).read()
    assert 3 <= len(before) < total(settings, before)
    file.write_text(file.read_text() + before[0].task)  # and a line cut short

    main(["--quick", "--device=cpu", f"--dir={folder}", "--workers=0"])
    rows = RowFile(file).read()
    assert rows[: len(before)] == before
    assert due(settings, rows) == []
    assert len({row.job for row in rows}) == len(rows) == total(settings, rows)
    studied = {(row.optimizer, row.k, row.seed) for row in rows if row.phase == "study"}
    assert studied == {(name, k, 0) for name in ("sgd", "lamb") for k in (1, 8)}
    assert {row.steps for row in rows if row.k == 1} == {4 * 1280 // 8}
    assert {row.steps for row in rows if row.k == 8} == {4 * 1280 // 64}
    printed = capsys.readouterr().out

    # The report is of these rows.
    text = (folder / "table.md").read_text()
    assert text in printed
    for row in rows:
        if row.phase == "study":
            assert f"{100 * row.test_accuracy:.1f}" in text
            assert row.test_accuracy > 0.3 and not row.diverged
    assert (folder / "picture.png").stat().st_size > 10_000
    assert len((folder / "summary.csv").read_text().splitlines()) == 1 + 4

    # Once more: nothing is left to do, and nothing changes.
    written = file.read_bytes()
    main(["--quick", "--device=cpu", f"--dir={folder}", "--workers=0"])
    assert file.read_bytes() == written
    assert (folder / "table.md").read_text() == text

    _other_settings_are_refused(folder, capsys)


def _other_settings_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps({**facts, "torch": "0.1"}))
    with pytest.raises(SystemExit) as ended:
        main(["--quick", "--device=cpu", f"--dir={folder}", "--workers=0"])
    assert ended.value.code == 2
    assert "holds a study with another torch (0.1, now " in capsys.readouterr().err


def _wait(condition: object, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 150
    while not condition():
        assert process is None or process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_what_is_asked_for_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []
    monkeypatch.setattr(command, "run", lambda settings, folder, workers: str(seen.append(settings)))
    main(["--device=cpu", f"--dir={tmp_path}", "--tasks", "lstm", "bert", "--optimizers", "lamb", "--epochs-factor=4"])
    assert seen == [Settings(tasks=("lstm", "bert"), optimizers=("lamb",), epochs_factor=4.0)]
    assert [seen[0].epochs(TASKS[name]("small")) for name in seen[0].tasks] == [40, 32]


def test_no_epochs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--epochs-factor=0"])
    assert "--epochs-factor is 0.0: write a number above 0" in capsys.readouterr().err
