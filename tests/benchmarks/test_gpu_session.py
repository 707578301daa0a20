"""The session on a GPU: limits, exit statuses, what is rehearsed without one. No test looks at a time but generously."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, constants, steps
from benchmarks.gpu.apart import apart
from benchmarks.gpu.bench import Bench, Options
from benchmarks.gpu.session import ROOT, Session, Stage
from benchmarks.gpu.stages import NAMES, environment, files_with_gpu_tests, stages
from benchmarks.measure import launches
from benchmarks.measure.stopwatch import Sample
from benchmarks.rows import simplest

REHEARSAL = Options(torch.device("cpu"), "tiny", 60.0, ())
interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")


def contestant(name: str) -> Contestant:
    return next(c for c in everyone() if c.name == name)


def stage(name: str, code: str, file: str = "out.txt", share: float = 1.0, **fields: Any) -> Stage:
    return Stage(name, file, share, lambda limit: [sys.executable, "-c", code], **fields)


def session(folder: Path, seconds: float, grace: float = 0.3) -> Session:
    return Session(folder, seconds, os.environ, grace=grace)


# -- limits and exit statuses ------------------------------------------------------------------------------------------

SLEEPS = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("I was here", flush=True)
child = os.fork()
if child:
    open("{file}", "w").write(str(child))
time.sleep(120)
"""


def test_a_stage_that_sleeps_is_killed_with_its_children_and_the_next_one_runs(tmp_path: Path) -> None:
    number = tmp_path / "child"
    began = time.monotonic()
    sleeps = stage("sleeps", SLEEPS.format(file=number), "slept.txt")
    trouble = session(tmp_path / "out", 10.0).run([sleeps, stage("next", "print('and I')", "next.txt", share=3.0)])
    assert time.monotonic() - began < 60  # Not two minutes; its limit is 2.5 seconds.
    assert trouble == ["sleeps"]
    assert (tmp_path / "out/slept.txt").read_text() == "I was here\n"
    assert (tmp_path / "out/next.txt").read_text() == "and I\n"
    assert "sleeps: stopped at its limit after" in (tmp_path / "out/log.txt").read_text()
    for _ in range(100):
        if not running(int(number.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the child goes on")


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupted_stage_may_say_what_it_knows(tmp_path: Path) -> None:
    code = "import time\ntry:\n  time.sleep(120)\nexcept KeyboardInterrupt:\n  print('half of it')"
    assert session(tmp_path, 2.5, grace=20.0).run([stage("sleeps", code)]) == ["sleeps"]
    assert (tmp_path / "out.txt").read_text() == "half of it\n"


def test_what_fails_is_said_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> None:
        raise FileNotFoundError("no.json")

    trouble = session(tmp_path, 30.0).run(
        [
            stage("fails", "print('why'); raise SystemExit(3)", repeated="wh"),
            stage("collects", "pass", collect=missing),
            Stage("not there", "out.txt", 1.0, lambda limit: ["/no/such/program"]),
            stage("well", "print('more')"),
        ]
    )
    assert trouble == ["fails", "collects", "not there"]
    assert (tmp_path / "out.txt").read_text() == "why\nmore\n"
    said = capsys.readouterr().out
    assert said == (tmp_path / "log.txt").read_text()
    assert "    why\n" in said and "fails: FAILED with status 3 after" in said and "FileNotFoundError: no.json" in said


def test_no_stage_begins_without_time(tmp_path: Path) -> None:
    assert session(tmp_path, 0.5).run([stage("late", "print('here')")]) == ["late"]
    assert (tmp_path / "out.txt").read_text() == ""


def test_what_a_stage_leaves_over_goes_to_the_next_ones(tmp_path: Path) -> None:
    limits = []

    def asked(limit: float) -> list[str]:
        limits.append(limit)
        return [sys.executable, "-c", ""]

    session(tmp_path, 100.0).run(
        [Stage(name, "out.txt", share, asked) for name, share in (("a", 3), ("b", 1), ("c", 1))]
    )
    assert limits[0] == pytest.approx(60, abs=1)
    assert 45 < limits[1] <= 50 < 80 < limits[2] <= 100


@pytest.mark.parametrize(
    ("code", "status", "said"), [("", 0, "all stages ended well"), ("1/0", 1, "not well: versions")]
)
def test_the_exit_status(code: str, status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command, "stages", lambda *_: [stage("versions", code), stage("tests", "print('not asked for')")]
    )
    assert command.main(["--rehearse", "--stages", "versions", "--output", str(tmp_path)]) == status
    assert said in (tmp_path / "log.txt").read_text()
    assert "not asked for" not in (tmp_path / "out.txt").read_text()


def test_without_a_device_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("There is no CUDA device here") and "--rehearse" in said.err


def test_results_are_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 (80 GB)")
    monkeypatch.setattr("benchmarks.report.files.RESULTS", tmp_path)
    first = command._new_folder(rehearse=False)
    assert first.parent == tmp_path and first.name.endswith("-gpu-nvidia-h200-80-gb")
    first.mkdir()
    assert command._new_folder(rehearse=False).name == f"{first.name}-2"


# -- the stages --------------------------------------------------------------------------------------------------------


def test_there_are_at_most_eight_files_and_every_stage_is_there(tmp_path: Path) -> None:
    found = stages(tmp_path, tmp_path, rehearse=True)
    assert tuple(s.name for s in found) == NAMES
    tables = {s.file for s in found if s.file.endswith(".md")}
    assert len({"log.txt", *(s.file for s in found)}) + len(tables) <= 8  # Beside each table its JSON.
    assert all(s.command(30.0)[0] == sys.executable for s in found)


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    real, rehearsal = (environment(tmp_path, rehearse) for rehearse in (False, True))
    assert "TRITON_INTERPRET" not in real and rehearsal["TRITON_INTERPRET"] == "1"
    assert rehearsal["CUDA_VISIBLE_DEVICES"] == ""
    assert real["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT) and real["TRITON_CACHE_DIR"].startswith(str(tmp_path))


def test_files_with_gpu_tests_are_found_and_no_others(tmp_path: Path) -> None:
    marker = "pytest.mark." + "gpu"  # Written in one piece it would make this file one of them.
    (tmp_path / "shared.py").write_text(f"import pytest\neverywhere = pytest.mark.parametrize('d', [{marker}])\n")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/test_shared.py").write_text("@everywhere\ndef test_it(d): ...\n")
    (tmp_path / "test_marked.py").write_text(f"@{marker}\ndef test_it(): ...\n")
    (tmp_path / "test_others.py").write_text("def test_it_is_not_everywhere_(): ...\n")
    assert [path.name for path in files_with_gpu_tests(tmp_path)] == ["test_shared.py", "test_marked.py"]
    here = {path.name for path in files_with_gpu_tests(ROOT / "tests")}
    assert {"test_cuda.py", "test_fused.py"} <= here and not {"test_race.py", Path(__file__).name} & here


def test_versions_are_rehearsed(tmp_path: Path) -> None:
    assert command.main(["--rehearse", "--stages", "versions", "--output", str(tmp_path)]) == 0
    found = (tmp_path / "steps.txt").read_text()
    assert f"torch {version('torch')}" in found and "not installed: " in found
    assert "    versions: " in (tmp_path / "log.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "steps.txt"]


@interpreter
def test_steps_are_rehearsed(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{simplest().name} fused=True"
    assert steps.measure(REHEARSAL, contestant(name), 60.0)
    row = capsys.readouterr().out.split()
    assert row[:2] == name.split() and row[-2:] == ["not", "asked"]
    assert int(row[-3]) > 0 and all(float(number) >= 0 for number in row[2:-2])


def test_an_optimizer_that_fails_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(Bench, "optimizer", fails)
    assert not steps.measure(REHEARSAL, contestant("LAMB fused=True"), 60.0)
    assert "FAILS: RuntimeError: out of memory" in capsys.readouterr().out


def test_work_apart() -> None:
    assert apart("well", lambda: True, 30.0)
    assert not apart("wrong", lambda: False, 30.0)
    assert not apart("never ends", lambda: time.sleep(60) is None, 0.2)


def test_times_count_only_where_the_host_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = Bench(REHEARSAL)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    host = iter([0.010] * 3 + [0.010, 0.500, 0.010])
    bench.device, bench._rounds, bench._seconds_of_copy = SimpleNamespace(type="cuda"), 3, 0.001
    bench._stopwatch = SimpleNamespace(measure=lambda work: Sample(0.002, next(host)), now=lambda: 0.0)
    copies: list[int] = []
    monkeypatch.setattr(bench, "_copy", lambda: copies.append(1))
    assert bench.on_device({"step": lambda: None}) == {"step": [0.002, None, 0.002]}
    assert len(copies) == 3 * 22  # Each takes 1 ms: twice the 10 ms of the host, and two more.
    host = iter([0.010] * 3 + [0.500] * 3)
    with pytest.raises(RuntimeError, match="the host takes longer"):
        bench.on_device({"step": lambda: None})


# -- the checks --------------------------------------------------------------------------------------------------------

TORCH = "torch SGD foreach"


def test_a_replayed_graph_takes_the_same_step() -> None:
    assert "the same bits as steps without" in checks.graph(REHEARSAL, contestant(TORCH))


def test_a_graph_that_replays_another_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_captured", lambda step, device: lambda: None)
    with pytest.raises(checks.Wrong, match="after replay 1 "):
        checks.graph(REHEARSAL, contestant(TORCH))


def test_a_graph_that_a_step_elsewhere_disturbs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads gradients by a table, which the step with others fills anew."""

    def captured(step: Any, device: object) -> Any:
        numbers = count(1)

        def replay() -> None:
            if next(numbers) == 4:  # The first after a step elsewhere.
                for group in step.__self__.param_groups:
                    for p in group["params"]:
                        p.grad.zero_()
            step()

        return replay

    monkeypatch.setattr(checks, "_captured", captured)
    with pytest.raises(checks.Wrong, match=r"^off from the twin after replay 4 \S+, replay 5 \S+$"):
        checks.graph(REHEARSAL, contestant(TORCH))


def test_nan_is_apart() -> None:
    zero, nan = torch.zeros(3), torch.full((3,), float("nan"))
    assert not checks._apart([zero, nan], [zero, zero], [zero, zero]) <= 1


def test_kernels_that_are_compiled_anew_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([{"_step": 4}, {"_step": 4}, {"_step": 5}, {"_step": 5, "_total": 2}, {"_step": 5, "_total": 2}])
    monkeypatch.setattr(checks, "compiled_kernels", lambda: launches.Counter(next(seen)))
    with pytest.raises(checks.Wrong, match="compiled anew: _step for 13 matrices; _total for 17 matrices"):
        checks.other_sizes(REHEARSAL, contestant(TORCH))


def test_compiled_forms_are_counted_in_every_triton() -> None:
    tuples = {0: ({"a": 1, "b": 2}, {}, "target"), 1: ({"a": 1}, {}, "target")}
    assert launches._forms(SimpleNamespace(device_caches=tuples)) == 3
    assert launches._forms(SimpleNamespace(cache={0: {"a": 1, "b": 2}})) == 2


# -- the constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", constants.NAMES)
def test_every_constant_that_is_tried_is_there_and_put_back(name: str) -> None:
    tried = constants.trials(contestant(name).name)
    assert len({trial.kind for trial in tried}) > 1
    for trial in tried:
        before = values(trial)
        with constants.changed(trial.changes):
            inside = values(trial)
        assert values(trial) == before
        assert len(inside) == len(trial.changes)
        assert inside != before or trial.kind in ("lag", "chunk", "warps, rows")  # As it is, for comparison.


def values(trial: constants.Trial) -> list[Any]:
    return [getattr(*constants.holder_of(path)) for path in trial.changes]


def test_a_constant_that_is_not_there_has_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [constants.Trial("chunk", "2", {"chunks.CHUNK": lambda old: 2, "lamb.NO_SUCH": lambda old: 3})]
    monkeypatch.setattr(constants, "trials", lambda name: gone)
    seconds = iter([0.2, 0.1])
    monkeypatch.setattr(constants, "_time", lambda bench, contestant: next(seconds))
    before = getattr(*constants.holder_of("chunks.CHUNK"))
    assert constants.search(REHEARSAL, contestant("LAMB fused=True"), 60.0)
    assert "LAMB fused=True, chunk 2: FAILS: AttributeError: " in capsys.readouterr().out
    assert getattr(*constants.holder_of("chunks.CHUNK")) == before


def test_the_best_of_each_kind_are_tried_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trial(kind: str, value: str) -> constants.Trial:
        return constants.Trial(kind, value, {})

    tried = [trial("a", "1"), trial("a", "2"), trial("b", "1"), trial("c", "1")]
    milliseconds = iter([10.0, 9.0, 8.0, 9.5, 11.0, 7.0])
    monkeypatch.setattr(constants, "trials", lambda name: tried)
    monkeypatch.setattr(constants, "_time", lambda bench, contestant: next(milliseconds))
    assert constants.search(REHEARSAL, contestant("LAMB fused=True"), 60.0)
    best = [
        line.split(": ")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("best of LAMB fused")
    ]
    assert best == [
        ["a 2; b 1", "7.000 ms, 0.70 of as they are"],
        ["a 2", "8.000 ms, 0.80 of as they are"],
        ["a 1", "9.000 ms, 0.90 of as they are"],
    ]


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_rehearsal(tmp_path: Path) -> None:
    assert command.main(["--rehearse", "--minutes", "14", "--output", str(tmp_path)]) == 0, (
        tmp_path / "log.txt"
    ).read_text()
    names = ["bf16.json", "bf16.md", "constants.txt", "float32.json", "float32.md", "log.txt", "steps.txt", "tests.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in ("float32", "bf16"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert (tmp_path / f"{name}.md").read_text().startswith("# ")
