"""A whole run on small tensors: rows, reasons, files. No test looks at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import optimizers
from benchmarks.contestants import everyone
from benchmarks.contestants.contestant import Contestant, NotAvailable
from benchmarks.contestants.imports import load, load_file
from benchmarks.contestants.of_torch import BASELINE
from benchmarks.equations import rules
from benchmarks.measure.environment import has_avx512
from benchmarks.measure.memory import state_bytes
from benchmarks.report.files import write
from benchmarks.report.result import Report, Row
from benchmarks.report.table import markdown
from benchmarks.report.targets import compare, targets
from benchmarks.run import run
from benchmarks.settings import Settings
from lightning_scale.optim import LAMB
from lightning_scale.optim.backends.choice import has_triton

ROOT = Path(__file__).parents[2]
TINY = {"parameters": "tiny", "threads": 1, "rounds": 2, "least": 1, "seconds": 1.0, "copy_mib": 1, "flush_mib": 1}
needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
ROW = set(Row.__dataclass_fields__)


def contestant(name: str, make: Any, **fields: Any) -> Contestant:
    return Contestant(name, "nobody", "LAMB", rules.LAMB, make, **fields)


def not_there(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    return load("no_such_package_anywhere.optim").LAMB(parameters)


def fails(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    raise RuntimeError("needs\n another device")


def other_beta(parameters: Sequence[nn.Parameter], lr: float) -> Any:
    return LAMB(parameters, lr=lr, betas=(0.5, 0.99))


OURS = ["LAMB fused=None", "LAMB fused=None, no test", "LAMB8bit fused=None", "LAMB fused=True", "LARS fused=True"]


@pytest.fixture(scope="module")
def report() -> Report:
    chosen = [c for c in everyone() if c.name in OURS]
    strange = [contestant("absent", not_there), contestant("failing", fails), contestant("other", other_beta)]
    return run(Settings(**TINY), [*chosen, *strange])  # type: ignore[arg-type]


def row(report: Report, name: str) -> Row:
    return next(r for r in report.runs[0].rows if r.name == name)


def test_the_baseline_comes_first_and_its_ratio_is_one(report: Report) -> None:
    first = report.runs[0].rows[0]
    assert first.name == report.baseline == BASELINE
    ratio = first.ratio
    assert ratio is not None and (ratio.min, ratio.median, ratio.max) == (1.0, 1.0, 1.0)


def test_who_is_missing_is_listed_with_the_reason(report: Report) -> None:
    assert (row(report, "absent").status, row(report, "absent").reason) == ("missing", "not installed")
    assert row(report, "failing").reason == "fails: RuntimeError: needs another device"
    table = markdown(report)
    assert "- absent: not installed" in table
    assert "- failing: fails: RuntimeError: needs another device" in table


def test_a_wrong_one_is_measured_and_marked(report: Report) -> None:
    other = row(report, "other")
    assert other.status == "wrong" and other.check is not None and other.check.error > 0.01
    assert other.seconds is not None and other.ratio is not None
    assert "| ✗ other" in markdown(report) and "not LAMB: off by" in markdown(report)


def test_what_is_counted(report: Report) -> None:
    lamb, eight_bit = row(report, "LAMB fused=None"), row(report, "LAMB8bit fused=None")
    assert lamb.status == eight_bit.status == "measured"
    assert (lamb.bytes_per_element, row(report, "LAMB fused=None, no test").bytes_per_element) == (44, 40)
    assert lamb.state_bytes_per_element == pytest.approx(8.0, abs=0.01)
    assert eight_bit.state_bytes_per_element is not None and 2.0 < eight_bit.state_bytes_per_element < 2.5
    assert lamb.bytes_per_second is not None and lamb.seconds is not None
    assert lamb.bytes_per_second == pytest.approx(44 * report.runs[0].elements / lamb.seconds.median)
    assert lamb.share_of_copy == pytest.approx(lamb.bytes_per_second / report.runs[0].copy_bytes_per_second.median)


@pytest.mark.skipif(not has_triton() or torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_the_kernels_run_in_the_interpreter(report: Report) -> None:
    for name in ("LAMB fused=True", "LARS fused=True"):
        kernels = row(report, name)
        assert kernels.status == "measured", kernels.reason
        assert kernels.triton_launches is not None and kernels.triton_launches >= 3
    assert report.environment["triton_interpreter"]


@pytest.mark.skipif(not has_triton() or torch.cuda.is_available(), reason="needs Triton's interpreter")
def test_the_interpreter_is_not_asked_for_millions() -> None:
    from benchmarks.entrant import refuse

    kernels = next(c for c in everyone() if c.name == "LAMB fused=True")
    with pytest.raises(NotAvailable, match="interpreter"):
        refuse(kernels, Settings(parameters="cpu"), torch.float32)


def test_the_json_has_everything(report: Report, tmp_path: Path) -> None:
    table, data, *_ = write(report, tmp_path)
    assert table.suffix == ".md" and data.suffix == ".json" and table.stem == data.stem
    assert table.stem.startswith(report.date[:10])
    read = json.loads(data.read_text())
    assert set(read) == {"date", "environment", "baseline", "runs", "targets"}
    (one,) = read["runs"]
    assert set(one) == {
        "settings",
        "elements",
        "tensors",
        "copy_bytes_per_second",
        "others_share_of_cores",
        "rows",
    }
    assert all(set(r) == ROW for r in one["rows"]) and len(one["rows"]) == len(report.runs[0].rows)
    assert read["environment"].keys() >= {"device", "cpu", "avx512", "cores", "threads", "python", "versions", "commit"}
    assert read["environment"]["versions"].keys() >= {"torch", "triton", "timm", "bitsandbytes", "torchao", "apex"}
    assert set(one["rows"][0]["seconds"]) == {"min", "median", "max", "count"}
    assert len(read["targets"]) == len(targets(True))
    again, *_ = write(report, tmp_path)
    assert again != table  # nothing is overwritten


@needs_matplotlib
def test_the_picture_has_everyone_who_was_measured(report: Report, tmp_path: Path) -> None:
    from benchmarks.report import picture

    table, _, drawn = write(report, tmp_path)
    assert f"]({drawn.name})" in table.read_text()
    assert drawn.suffix == ".png" and drawn.read_bytes().startswith(b"\x89PNG")
    times, state = picture.figure_of(report.as_dict()).axes
    measured = [r for r in report.runs[0].rows if r.status != "missing"]
    names = [label.get_text() for label in times.get_yticklabels()]
    assert names == [("✗ " if r.status == "wrong" else "") + r.name for r in measured]
    assert "✗ other" in names
    assert [bar.get_width() for bar in state.patches] == [r.state_bytes_per_element for r in measured]
    medians = [line.get_xdata()[0] for line in times.lines if line.get_marker() in ("o", "X")]
    assert medians == [r.ratio.median for r in measured if r.ratio is not None]


@needs_matplotlib
def test_a_written_run_is_drawn_again(report: Report, tmp_path: Path) -> None:
    from benchmarks.report import picture

    _, data, drawn = write(report, tmp_path)
    drawn.unlink()
    picture.main([str(data)])
    assert drawn.is_file()


def test_without_matplotlib_there_is_a_table(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.report.files.find_spec", lambda name: None)
    assert [path.suffix for path in write(report, tmp_path)] == [".md", ".json"]
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture(scope="module")
def several(report: Report) -> Report:
    """The same of two sets."""
    (one,) = report.runs
    return replace(report, runs=[one, replace(one, settings={**one.settings, "parameters": "many"})])


def test_a_set_each_has_a_table(several: Report) -> None:
    table = markdown(several)
    assert re.findall(r"^## (.*)$", table, flags=re.MULTILINE) == [
        "Set tiny: 40,608 elements in 6 tensors, float32",
        "Set many: 40,608 elements in 6 tensors, float32",
        "Targets",
    ]
    assert table.count("| ✗ other") == 2


@needs_matplotlib
def test_a_set_each_has_its_panels(several: Report) -> None:
    from benchmarks.report import picture

    panels = picture.figure_of(several.as_dict()).axes
    assert len(panels) == 4
    assert [axis.get_title("left").partition(":")[0] for axis in panels[::2]] == ["tiny", "many"]
    before = several.as_dict() | several.as_dict()["runs"][0]
    del before["runs"]
    assert len(picture.figure_of(before).axes) == 2  # a file from before there were several sets


def test_several_sets_are_measured_one_after_the_other() -> None:
    settings = [Settings(**{**TINY, "parameters": name}) for name in ("tiny", "many")]  # type: ignore[arg-type]
    steps: list[Any] = []

    def counted(parameters: Sequence[nn.Parameter], lr: float) -> Any:
        steps.append([p.shape for p in parameters])
        return LAMB(parameters, lr=lr)

    seen = run(settings, [contestant("counted", counted)])
    assert [(r.settings["parameters"], r.tensors) for r in seen.runs] == [("tiny", 6), ("many", 5000)]
    assert all(r.rows[0].ratio is not None and r.rows[1].seconds is not None for r in seen.runs)
    assert [len(shapes) for shapes in steps] == [6, 6, 5000]  # it is checked once


def test_targets_say_unmeasured_where_they_are(report: Report) -> None:
    assert all(target.measured is None for target in report.targets)  # the set tiny is nobody's target
    assert markdown(report).count("unmeasured") == len(targets(True))


def test_a_target_takes_the_quickest_right_one(report: Report) -> None:
    (one,) = report.runs

    def as_if(**settings: Any) -> Any:
        return replace(one, settings={**one.settings, "threads": 2, **settings})

    found = compare([as_if(parameters="cpu"), as_if(parameters="many")], avx512=True)
    for name in ("cpu", "many"):
        lamb = next(t for t in found if (t.parameters, t.optimizer) == (name, "LAMB"))
        assert lamb.by == "LAMB fused=None" and lamb.measured is not None
    assert all(t.measured is None for t in found if t.device == "cuda" or t.parameters == "small")
    assert all(t.measured is None for t in compare([as_if(parameters="cpu", threads=1)], avx512=True))


@pytest.mark.parametrize(("share", "said"), [(None, "goal"), (0.01, "goal"), (0.5, "disturbed by others")])
def test_a_target_counts_on_a_quiet_machine_alone(report: Report, share: float | None, said: str) -> None:
    settings = {**report.runs[0].settings, "parameters": "cpu", "threads": 2}
    lamb = row(report, "LAMB fused=None")
    assert lamb.ratio is not None
    quick = replace(lamb, ratio=replace(lamb.ratio, median=1.0))
    seen = replace(report.runs[0], settings=settings, others_share_of_cores=share, rows=[quick])
    found = compare([seen], avx512=True)
    (line,) = [x for x in markdown(replace(report, targets=found)).splitlines() if x.startswith("| LAMB on cpu, cpu ")]
    assert line.split("|")[-2].strip() == said


@pytest.mark.parametrize(("avx512", "numbers"), [(True, (3.5, 2.5)), (False, (5.0, 3.5))])
def test_a_target_that_depends_on_the_processor(report: Report, avx512: bool, numbers: tuple[float, float]) -> None:
    found = compare([], avx512)
    small = next(t for t in found if (t.parameters, t.optimizer) == ("small", "LAMB8bit"))
    assert (small.must, small.goal) == numbers
    row = f"| LAMB8bit on cpu, small ({'with' if avx512 else 'without'} AVX-512)"
    assert row in markdown(replace(report, targets=found))


@pytest.mark.parametrize(("flags", "found"), [("fpu avx2 avx512f avx512bw", True), ("fpu avx2", False), (None, False)])
def test_the_processors_flags(flags: str | None, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nmodel name\t: one of them\nflags\t\t: {flags}\n")
    monkeypatch.setattr("benchmarks.measure.environment._CPUINFO", path)
    assert has_avx512() is found


def test_master_weights_leave_out_who_keeps_none() -> None:
    settings = Settings(**{**TINY, "dtype": "bf16-master", "only": ("LAMB fused=None", "torch *")})  # type: ignore[arg-type]
    seen = run(settings)
    lamb = row(seen, "LAMB fused=None")
    assert lamb.status == "measured" and lamb.state_bytes_per_element == pytest.approx(12, abs=0.01)
    assert row(seen, BASELINE).bytes_per_element == 28
    assert "master weights" in row(seen, "torch SGD fused").reason


def test_an_interrupted_import_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "half_there"
    package.mkdir()
    (package / "__init__.py").write_text("import surely_not_installed_either")
    (package / "part.py").write_text("here = True")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NotAvailable, match=r"import half_there\.part fails: .*surely_not_installed_either"):
        load("half_there.part")
    assert load_file("half_there.part").here


def test_state_counts_every_storage_once() -> None:
    p = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([p])
    shared = torch.zeros(16)
    optimizer.state[p] = {"a": shared, "b": shared[:4], "c": {"inner": [torch.zeros(2, dtype=torch.uint8)]}, "step": 3}
    assert state_bytes(optimizer) == 64 + 2


@pytest.mark.parametrize(
    ("options", "sets"),
    [
        ([], {"cpu": (30, 100.0), "small": (100, 25.0), "many": (100, 25.0)}),
        (["--set", "cpu"], {"cpu": (30, 150.0)}),
        (["--parameters", "small", "--seconds", "9"], {"small": (100, 9.0)}),
        (["--set", "many", "tiny", "--rounds", "2"], {"many": (2, 30.0), "tiny": (2, 120.0)}),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_what_the_command_asks_for_on_a_cpu(
    options: list[str], sets: dict[str, Any], report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def instead(settings: list[Settings], **_: Any) -> Report:
        asked.extend(settings)
        return report

    monkeypatch.setattr(optimizers, "run", instead)
    optimizers.main(["--device", "cpu", *options])
    assert {s.parameters: (s.rounds, s.seconds) for s in asked} == sets
    assert {(s.device, s.threads, s.least) for s in asked} == {("cpu", 2, 3)}


@pytest.mark.parametrize("command", [["-m", "benchmarks.optimizers"], ["benchmarks/optimizers.py"]])
def test_both_commands(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout
