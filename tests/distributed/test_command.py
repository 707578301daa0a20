"""`lightning-scale fit` of a small BERT under every fragment of strategies/: the losses, rates and layers of one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.bert_fit import write_text
from tests.distributed.launch import ROOT, run_ranks
from tests.distributed.meshes import FSDP2, needs_fsdp2
from tests.distributed.zero_runs import DEEPSPEED, needs_deepspeed
from tests.launch.demo import ended, logs, start_forked

pytestmark = pytest.mark.timeout(600)

FRAGMENTS = sorted(path.stem for path in (ROOT / "strategies").glob("*.yaml"))
_HERE = {"zero": DEEPSPEED, "fsdp": FSDP2}
STEPS = (5, 5)
LOSS, RATIO = 1e-5, 1e-5
NORM = 1e-6
"""The size of norms that are nothing but rounding: an attention key's bias changes no output, so its gradient is 0."""


def _parameters(names: list[str], own: str | None = None) -> list[Any]:
    """Those that need DeepSpeed or a newer torch skip without it; all but ``own`` are slow."""
    needs = {"zero": [needs_deepspeed], "fsdp": [needs_fsdp2]}
    marks = {name: needs.get(name[:4], []) for name in names}
    return [
        pytest.param(name, marks=marks[name] + ([pytest.mark.slow] if own and name != own else [])) for name in names
    ]


def _small(folder: Path) -> dict[str, Any]:
    """What examples/bert/two_stage.yaml is made small by: two stages, accumulation, LEGW's warmup, the ratios of each step."""
    stages = [
        {"sequence_length": 13, "micro_batch_size": 4, "batch_size": 16, "steps": STEPS[0], "power": 0.5},
        {
            "sequence_length": 24,
            "micro_batch_size": 2,
            "batch_size": 8,
            "steps": STEPS[1],
            "bias_correction_step": "reset",
        },
    ]
    ours = "lightning_scale.callbacks"
    callbacks: list[Any] = [
        {"class_path": f"{ours}.LEGWWarmup", "init_args": {"base_batch_size": 4, "base_warmup": "0.1 epochs"}},
        {"class_path": f"{ours}.SequenceLengthStages", "init_args": {"stages": stages}},
        {"class_path": f"{ours}.ValidateEvery", "init_args": {"interval": "2 steps"}},
        f"{ours}.ExactResume",
        {"class_path": f"{ours}.TrustRatioMonitor", "init_args": {"every_n_steps": 1}},
        {"class_path": "examples.bert.RunReport", "init_args": {"dir": "report"}},
    ]
    logger = "lightning.pytorch.loggers.CSVLogger"
    return {
        "model": {"init_args": {"layers": 2, "width": 16, "heads": 2, "max_positions": 32}},
        "data": {"init_args": {"files": [f"{folder}/text.txt"], "vocab_size": 128, "cache_dir": f"{folder}/prepared"}},
        "trainer": {
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "logger": {"class_path": logger, "init_args": {"save_dir": "logs", "version": "run"}},
            "callbacks": callbacks,
        },
    }


def _command(root: Path, strategy: str | None) -> list[str]:
    configs = [str(ROOT / "examples/bert/two_stage.yaml"), str(root / "small.yaml")]
    configs += [f"strategies/{strategy}.yaml"] if strategy else []
    return ["lightning-scale", "fit", *(word for config in configs for word in ("--config", config))]


@dataclass
class Run:
    """What a run left on the disk."""

    rows: list[dict[str, str]]
    """RunReport's: a step each."""
    table: dict[tuple[int, str], float]
    """TrustRatioMonitor's, by step and name."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        with (
            (folder / "report/report.csv").open() as report,
            (folder / "logs/lightning_logs/run/metrics.csv").open() as log,
        ):
            table = {
                (int(row["step"]), name): float(value)
                for row in csv.DictReader(log)
                for name, value in row.items()
                if value and "/" in name
            }
            return cls(list(csv.DictReader(report)), table)


def _typed(root: Path, strategy: str) -> Run:
    """Of the command as it is typed, which starts its other ranks itself."""
    folder = root / f"typed-{strategy}"
    folder.mkdir()
    _, *arguments = _command(root, strategy)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lightning-scale")), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return Run.read(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the text, and what makes the example small."""
    folder = tmp_path_factory.mktemp("command")
    write_text(folder / "text.txt")
    (folder / "small.yaml").write_text(yaml.safe_dump(_small(folder)))
    return folder


@pytest.fixture(scope="module")
def alone(root: Path) -> Run:
    folder = root / "alone"
    folder.mkdir()
    assert ended([start_forked(_command(root, None), folder, "all.log")], 300) == [0], logs(folder)
    return Run.read(folder)


def ranks(folder: str) -> None:
    """Each strategy after the other in the same two processes, which saves starting them."""
    from lightning_scale.cli import main

    for name in FRAGMENTS:
        if _HERE.get(name[:4], True):
            where = Path(folder) / name
            where.mkdir(exist_ok=True)
            os.chdir(where)
            sys.argv = _command(Path(folder), name)
            main()


@pytest.fixture(scope="module")
def runs(root: Path, alone: Run) -> dict[str, Run]:
    run_ranks(__name__, "ranks", root, 2, timeout=500)
    return {name: Run.read(root / name) for name in FRAGMENTS if (root / name).exists()}


def _check(found: Run, truth: Run) -> None:
    for row, true in zip(found.rows, truth.rows, strict=True):
        for key in ("step", "stage", "samples", "sequence_length", "batch_size", "lr"):
            assert row[key] == true[key], key
        for key in ("train_loss", "val_loss"):
            assert bool(row[key]) == bool(true[key])
            assert not row[key] or float(row[key]) == pytest.approx(float(true[key]), abs=LOSS, rel=0), key
    assert found.table.keys() == truth.table.keys()
    for (step, name), value in truth.table.items():
        if name.startswith("step_size/") and name.endswith("key.bias"):
            continue  # its gradient is truly 0, and so this is one rounding divided by another
        tolerance = 0.0 if name.startswith("trust_ratio/") else NORM
        assert found.table[step, name] == pytest.approx(value, rel=RATIO, abs=tolerance, nan_ok=True), (step, name)


def test_one_process_goes_through_both_stages(alone: Run) -> None:
    """So that there is something to compare: a warmup, a switch, validations, and ratios of all kinds."""
    assert [row["sequence_length"] for row in alone.rows] == ["13"] * STEPS[0] + ["24"] * STEPS[1]
    rates = [float(row["lr"]) for row in alone.rows]
    assert 0 < rates[0] < rates[1] and 0 < rates[5] < rates[6]
    assert len({row["val_loss"] for row in alone.rows if row["val_loss"]}) == sum(STEPS) // 2
    assert len({row["train_loss"] for row in alone.rows}) == sum(STEPS)
    ratios = [value for (_, name), value in alone.table.items() if name.startswith("trust_ratio/")]
    assert len(set(ratios)) > 150 and len(alone.table) == 4 * len(ratios)


@pytest.mark.parametrize("name", _parameters(FRAGMENTS))
def test_two_processes_have_its_losses_and_ratios(name: str, runs: dict[str, Run], alone: Run) -> None:
    _check(runs[name], alone)
    _check(runs[name], runs["ddp"])


@pytest.mark.parametrize("name", _parameters(FRAGMENTS, own="zero3_offload"))
def test_the_command_starts_its_own_ranks(name: str, root: Path, alone: Run) -> None:
    _check(_typed(root, name), alone)
