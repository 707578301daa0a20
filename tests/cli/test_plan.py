"""`plan` reads the files of `fit` and trains nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_scale.cli import main
from tests.cli.test_cli import STAGED, another_folder, config, fit  # noqa: F401 (a fixture)

RAMP = {"class_path": "lightning_scale.callbacks.BatchSizeRamp", "init_args": {"schedule": "0:4 12:8"}}
LEGW = {
    "class_path": "lightning_scale.callbacks.LEGWWarmup",
    "init_args": {"base_batch_size": 4, "base_warmup": "3 steps"},
}


def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str, **changes: Any) -> str:
    main(["plan", "--config", config(tmp_path, **changes), "--picture", "null", *more])
    return capsys.readouterr().out


def test_the_command_plans_the_rates_that_fit_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scheduler = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}}
    changes = {"trainer__callbacks": [RAMP, LEGW], "lr_scheduler": scheduler, "trainer__max_steps": 6}
    planned = json.loads(plan(tmp_path, capsys, "--format", "json", **changes))["schedule"]
    assert not (tmp_path / "logs").exists()
    trained = fit(tmp_path, **changes)
    assert planned["steps"]["lr"] == trained.model.rates
    assert planned["steps"]["batch_size"] == [4, 4, 4, 8, 8, 8]
    assert planned["totals"]["steps"] == 6 and planned["totals"]["samples"] == 36


def test_ranks_are_those_of_the_configuration_or_as_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"trainer__callbacks": [STAGED], "trainer__max_steps": -1}
    strategy = {"class_path": "lightning_scale.strategies.ZeROStrategy", "init_args": {"stage": 3}}
    text = plan(
        tmp_path, capsys, trainer__devices=2, trainer__accelerator="gpu", trainer__strategy=strategy, **stages
    )  # neither GPUs nor DeepSpeed are needed
    assert "stage 2 begins" in text and "on 2 ranks" in text
    assert "on 1 rank." in plan(tmp_path, capsys, "--world-size=1", trainer__devices=2, **stages)


def test_what_fit_refuses_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of callbacks that have no say in steps."""
    twice = ["lightning_scale.callbacks.ExactResume", "lightning_scale.callbacks.ExactResume"]
    with pytest.raises(SystemExit):
        plan(tmp_path, capsys, trainer__callbacks=twice)
    assert "there are two ExactResume callbacks: keep one" in capsys.readouterr().err


def test_a_picture_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(["plan", "--config", config(tmp_path, trainer__callbacks=[STAGED], trainer__max_steps=-1)])
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "In all: 4 steps, 32 samples, 384 tokens" in capsys.readouterr().out


def test_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"class_path": "tests.cli.late.NoData"}
    text = plan(
        tmp_path,
        capsys,
        "--samples-per-epoch=1000",
        data=data,
        trainer__callbacks=[STAGED],
        trainer__max_steps=-1,
    )
    assert "In all: 4 steps, 32 samples" in text
    assert "Left out: the data is not opened, and has no example_sample()" in text


def test_gpt2_takes_16_bytes_a_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The textbook's 24 GB for 1.5 billion (Rajbhandari et al. 2019, section 3.1), of the model itself."""
    content = json.loads(
        plan(
            tmp_path,
            capsys,
            *("--format=json", "--activations=false", "--device-memory=80GB"),
            model={"class_path": "tests.plan.gpt2.GPT2"},
            optimizer={"class_path": "lightning_scale.optim.LAMB", "init_args": {"master_weights": True}},
            trainer__callbacks=[STAGED],
            trainer__max_steps=-1,
            trainer__precision="bf16-true",
        )
    )
    memory, parameters = content["memory"], 1_557_611_200
    assert memory["parameters"] == parameters
    held = memory["strategies"]["ddp"]["device"]
    assert [held[part] / parameters for part in ("parameters", "gradients", "master")] == [2, 2, 4]
    assert (held["total"] - held["updates"]) / parameters == pytest.approx(16, rel=1e-6)
    # On a CPU the updates of the largest layer wait between the two passes of a step.
    assert held["updates"] == pytest.approx(4 * 50257 * 1600, rel=1e-4)
    # 80 GB of 16 bytes each, and of the updates.
    assert memory["strategies"]["ddp"]["largest_model"] == pytest.approx(80e9 * parameters / held["total"], rel=1e-6)
    assert content["activations"] == {"left_out": "not asked for", "traced": []}


def test_memory_and_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(
        tmp_path,
        capsys,
        "--device-memory=80GB",
        *("--latency=5", "--bandwidth=25", "--compute=0.1", "--world-size=2"),
        trainer__callbacks=[STAGED],
        trainer__max_steps=-1,
        trainer__precision="bf16-mixed",
        trainer__strategy="zero1",
    ).splitlines()
    assert sum(line.strip().startswith("> zero1 ") for line in text) == 2  # of states, and of micro-batches
    assert any(line.split()[:3] == ["1", "8", "4"] for line in text)  # activations of stage 1
    assert "161 parameters, bf16-mixed, 2 ranks, 1 a node" in text
    assert text[-1].split()[:2] == ["8", "8"]


def test_a_link_needs_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(tmp_path, capsys, "--latency=5", trainer__callbacks=[STAGED], trainer__max_steps=-1)
    assert "bandwidth is None: weak scaling takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer__devices": "auto", "trainer__accelerator": "gpu"}, "give --world-size"),
        ({"trainer__max_step": 3}, "there is no option 'trainer.max_step': write 'trainer.max_steps'."),
        ({"trainer__max_steps": -1}, "nothing says where training ends"),
    ],
)
def test_errors_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SystemExit) as end:
        plan(tmp_path, capsys, **changes)
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-scale:")]
    assert words in line


def test_a_configuration_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plan(tmp_path, capsys, "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["format"] == "text"
