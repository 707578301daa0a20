"""The command: late optimizers, schedulers by step, fragments, the same command twice, errors in one sentence."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_scale.cli import ScaleCLI, main
from lightning_scale.cli.fragments import find_config
from lightning_scale.errors import ConfigurationError
from lightning_scale.optim import LAMB
from tests.distributed.meshes import FSDP2

STAGE = {"sequence_length": 8, "micro_batch_size": 4, "batch_size": 8, "steps": 2, "lr": 0.1}
BASE: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"class_path": "tests.cli.late.LateNet"},
    "data": {"class_path": "tests.toys.Vectors"},
    "optimizer": {"class_path": "lightning_scale.optim.LAMB", "init_args": {"lr": 0.01}},
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 3,
        "max_epochs": -1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "logs", "version": "0"},
        },
    },
}
STAGED = {
    "class_path": "lightning_scale.callbacks.SequenceLengthStages",
    "init_args": {"stages": [STAGE, {**STAGE, "sequence_length": 16}]},
}


def config(folder: Path, **changes: Any) -> str:
    """A configuration file; ``trainer__max_steps=5`` changes a nested key, None removes it."""
    content = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def fit(folder: Path, *more: str, **changes: Any) -> ScaleCLI:
    os.chdir(folder)
    return ScaleCLI(args=["fit", "--config", config(folder, **changes), *more])


@pytest.fixture(autouse=True)
def another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])


def test_the_optimizer_is_built_after_the_layers_and_knows_their_names(tmp_path: Path) -> None:
    cli = fit(tmp_path)
    optimizer = cli.trainer.optimizers[0]
    assert isinstance(optimizer, LAMB)
    assert set(optimizer.layer_stats()) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert cli.trainer.global_step == 3


def test_patterns_of_names_reach_the_optimizer(tmp_path: Path) -> None:
    names = {"exclude": ["net.0.*"], "eight_bit_except": ["*.2.weight"]}
    optimizer = {"class_path": "lightning_scale.optim.LAMB8bit", "init_args": {"lr": 0.01, **names}}
    rules = fit(tmp_path, optimizer=optimizer).trainer.optimizers[0].layer_rules()
    assert {name for name, rule in rules.items() if rule.adapts} == {"net.2.weight"}
    with pytest.raises(ConfigurationError, match=r"exclude has the pattern 'nets.*', .*'net\.0\.weight'"):
        fit(tmp_path, optimizer__init_args__exclude=["nets.0.weight"])


@pytest.mark.parametrize("kind", ["OwnOptimizer", "Inherited"])
def test_an_optimizer_of_the_modules_own_is_said_not_to_be_used(tmp_path: Path, kind: str) -> None:
    with pytest.warns(UserWarning, match=f"{kind}.configure_optimizers is not used"):
        cli = fit(tmp_path, model={"class_path": f"tests.cli.late.{kind}"})
    assert isinstance(cli.trainer.optimizers[0], LAMB)


@pytest.mark.parametrize(("interval", "rates"), [("step", [0.01, 0.005, 0.0025]), ("epoch", [0.01, 0.01, 0.01])])
def test_schedulers_advance_by_step_unless_told(tmp_path: Path, interval: str, rates: list[float]) -> None:
    scheduler = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}}
    changes = {} if interval == "step" else {"lr_scheduler_interval": "epoch"}
    cli = fit(tmp_path, lr_scheduler=scheduler, **changes)
    assert cli.model.rates == pytest.approx(rates)


def test_a_plateau_scheduler_gets_its_monitor(tmp_path: Path) -> None:
    scheduler = {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "val_loss", "patience": 0, "threshold": 1e9, "factor": 0.5},
    }
    cli = fit(tmp_path, lr_scheduler=scheduler, trainer__max_steps=51)  # 25 micro-batches a pass
    assert cli.trainer.lr_scheduler_configs[0].monitor == "val_loss"
    assert cli.model.rates[-1] < cli.model.rates[0]


def test_the_same_command_runs_twice_and_keeps_its_configuration(tmp_path: Path) -> None:
    for _ in range(2):
        assert fit(tmp_path).trainer.global_step == 3
    (file,) = (tmp_path / "logs").rglob("config.yaml")
    saved = yaml.safe_load(file.read_text())
    assert saved["optimizer"]["init_args"]["lr"] == 0.01


def test_what_print_config_prints_runs_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fit(tmp_path, trainer__callbacks=[STAGED], trainer__max_steps=-1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, "--print_config", trainer__callbacks=[STAGED], trainer__max_steps=-1)
    assert end.value.code in (0, None)
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again = ScaleCLI(args=["fit", "--config", str(printed)])
    assert again.model.rates == first.model.rates
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), first.model.parameters(), strict=True))


def test_fragments_stack(tmp_path: Path) -> None:
    cli = fit(tmp_path, "--config", "callbacks/trust_ratio_monitor.yaml", "--config=callbacks/legw_warmup.yaml")
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert {"TrustRatioMonitor", "LEGWWarmup"} <= set(names)


def test_a_fragment_in_the_current_folder_goes_first(tmp_path: Path) -> None:
    mine = tmp_path / "callbacks/trust_ratio_monitor.yaml"
    mine.parent.mkdir()
    mine.write_text("trainer:\n  max_steps: 1\n")
    assert fit(tmp_path, "--config", "callbacks/trust_ratio_monitor.yaml").trainer.global_step == 1


FRAGMENTS = sorted(
    str(path.relative_to(path.parents[1]))
    for folder in ("callbacks", "strategies")
    for path in (Path(__file__).parents[2] / folder).glob("*.yaml")
)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_parses_beside_a_configuration(tmp_path: Path, fragment: str) -> None:
    if "zero" in fragment:
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    if "fsdp2" in fragment and not FSDP2:
        pytest.skip("FSDP2Strategy needs torch 2.7")
    changes = {"trainer__max_steps": -1, "trainer__enable_progress_bar": True}
    cli = ScaleCLI(args=["--config", config(tmp_path, **changes), "--config", fragment], run=False)
    used = yaml.safe_load(Path(find_config(fragment)).read_text())["trainer"]
    for entry in used.get("callbacks+", []):
        assert entry["class_path"].split(".")[-1] in {type(callback).__name__ for callback in cli.trainer.callbacks}
    if "strategy" in used:
        assert type(cli.trainer.strategy).__name__ == used["strategy"]["class_path"].split(".")[-1]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_key_of_a_fragment_has_a_comment_above_it(fragment: str) -> None:
    lines = [line.strip() for line in Path(find_config(fragment)).read_text().splitlines()]
    explained = {"trainer", "callbacks+", "strategy", "- class_path", "class_path", "init_args"}  # by the first line
    for number, line in enumerate(lines):
        key = line.split(":")[0]
        if ":" in line and not line.startswith("#") and key not in explained and not key.startswith("-"):
            assert lines[number - 1].startswith("#"), key
            explained.add(key)
    assert lines[0].startswith("#")


def test_every_callback_and_strategy_has_its_fragment() -> None:
    import lightning_scale.callbacks as package

    root = Path(__file__).parents[2]
    text = "".join((root / name).read_text() for name in FRAGMENTS)
    for name in set(package.__all__) - {"Stage"}:
        assert f"lightning_scale.callbacks.{name}" in text
    readme = (root / "callbacks/README.md").read_text()
    assert all(Path(name).name in readme for name in FRAGMENTS if name.startswith("callbacks"))


CASES = {
    "unknown trainer key": (
        {"trainer__max_step": 3},
        "fit: there is no option 'trainer.max_step': write 'trainer.max_steps'.",
    ),
    "unknown section": ({"modle": 3}, "fit: there is no option 'modle': write 'model'."),
    "unknown argument": (
        {"optimizer__init_args__weight_dcay": 3},
        "there is no option 'weight_dcay': write 'weight_decay'.",
    ),
    "unknown class": ({"optimizer__class_path": "lightning_scale.optim.LAMBO"}, "has no attribute 'LAMBO'"),
    "wrong kind": ({"optimizer__init_args__weight_decay": "abc"}, "weight_decay: expected float, got abc."),
    "out of range": (
        {"optimizer__init_args__weight_decay": -1},
        "weight_decay is -1.0: give a finite number of at least 0.",
    ),
    "other namespace": (
        {"trainer__callbacks": ["pytorch_lightning.callbacks.LearningRateMonitor"]},
        "write lightning.pytorch.callbacks.LearningRateMonitor.",
    ),
    "stage of no length": (
        {"trainer__callbacks": [{**STAGED, "init_args": {"stages": [{**STAGE, "sequence_length": 0}]}}]},
        "sequence_length is 0: give a whole number of at least 1.",
    ),
    "stage that does not divide": (
        {"trainer__callbacks": [{**STAGED, "init_args": {"stages": [{**STAGE, "batch_size": 9}]}}]},
        "write batch_size 8 or 12",
    ),
    "warmup longer than its stage": (
        {"trainer__callbacks": [{**STAGED, "init_args": {"stages": [{**STAGE, "warmup": "3 steps"}]}}]},
        "warmup",
    ),
    "warmup without a unit": (
        {"trainer__callbacks": [{**STAGED, "init_args": {"stages": [{**STAGE, "warmup": 3}]}}]},
        "warmup",
    ),
    "unknown stage key": (
        {"trainer__callbacks": [{**STAGED, "init_args": {"stages": [{**STAGE, "sequence_len": 3}]}}]},
        "there is no option 'sequence_len': write 'sequence_length'.",
    ),
    "a callback twice": (
        {"trainer__callbacks": ["lightning_scale.callbacks.ExactResume", "lightning_scale.callbacks.ExactResume"]},
        "there are two ExactResume callbacks: keep one",
    ),
    "two owners": (
        {
            "trainer__callbacks": [
                STAGED,
                {"class_path": "lightning_scale.callbacks.GradientAccumulation", "init_args": {"batch_size": 8}},
            ]
        },
        "both set the batch size: keep one of them",
    ),
}


ON_THE_COMMAND_LINE = {
    "a word for a number": (["--optimizer.init_args.lr=abc"], "optimizer: lr: expected float or a class path"),
    "a class that is not there": (["--model=tests.cli.late.Nope"], "module 'tests.cli.late' has no attribute 'Nope'"),
    "an unknown name": (
        ["--optimizer=NoSuchOptimizer"],
        "optimizer: expected a class path such as package.module.Class, got NoSuchOptimizer.",
    ),
    "not a choice": (["--trainer.precision=fp16"], "bf16-mixed"),
    "no such checkpoint": (["--ckpt_path=no.ckpt"], "there is no checkpoint no.ckpt"),
    "no such device": (["--trainer.devices=0"], "is not a valid input using cpu"),
}


@pytest.mark.parametrize("case", ON_THE_COMMAND_LINE)
def test_errors_on_the_command_line_are_one_sentence(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, expected = ON_THE_COMMAND_LINE[case]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config(tmp_path), *args])
    assert end.value.code == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-scale: ")]
    assert expected in said


@pytest.mark.parametrize("case", CASES)
def test_errors_are_one_sentence(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, expected = CASES[case]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", config(tmp_path, **{"trainer__max_steps": -1, **changes})])
    assert end.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-scale: ")]
    assert len(said) == 1
    assert expected in said[0]
    assert "Traceback" not in said[0]


def test_a_missing_file_and_a_misspelt_option(capsys: pytest.CaptureFixture[str]) -> None:
    for args, expected in (
        (["fit", "--config", "no.yaml"], "File does not exist"),
        (["fit", "--confg", "x"], "--confg"),
    ):
        with pytest.raises(SystemExit):
            main(args)
        assert expected in capsys.readouterr().err


def test_the_command_sees_modules_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.cli.late import LateNet\nclass Mine(LateNet):\n    pass\n")
    file = config(tmp_path, model={"class_path": "mine.Mine"})
    command = [str(Path(sys.executable).parent / "lightning-scale"), "fit", "--config", file]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_the_package_is_quick() -> None:
    heavy = ("torch", "lightning", "triton")
    code = f"import sys, lightning_scale, lightning_scale.schedule; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_other_callers_get_the_error_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.max_step"):
        fit(tmp_path, trainer__max_step=3)
