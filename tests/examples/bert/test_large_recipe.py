"""bert_large.yaml against the numbers it stands for, written down once more here."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import instantiate_class

from examples.bert import BertPretraining, RunReport
from lightning_scale.callbacks import SequenceLengthStages, StepProgressBar, TrustRatioMonitor
from lightning_scale.cli import ScaleCLI
from lightning_scale.optim import LAMB

_RECIPE = Path(__file__).parents[3] / "examples" / "bert" / "bert_large.yaml"
_STEPS = (7038, 1563)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScaleCLI:
    """Everything that the recipe names, built on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])
    here = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"]
    return ScaleCLI(args=["--config", str(_RECIPE), *here], run=False)


def _callback(cli: ScaleCLI, kind: type[Any]) -> Any:
    (found,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, kind)]
    return found


def _rate(step: int) -> float:
    """lr·p/w while p < w, then lr·√(1 − p), with p = t/T counted in the stage."""
    (t, total), peak, w = ((step, 7038), 6e-3, Fraction("0.2843"))
    if step > 7038:
        (t, total), peak, w = ((step - 7038, 1563), 4e-3, Fraction("0.128"))
    p = Fraction(t, total)
    return peak * float(p / w) if p < w else peak * math.sqrt(1 - p)


def test_the_rate_of_every_step(cli: ScaleCLI) -> None:
    plan = _callback(cli, SequenceLengthStages).plan
    assert plan.total_steps == sum(_STEPS) == 8601
    rates = [plan.lr(step) for step in range(1, 8602)]
    assert rates == pytest.approx([_rate(step) for step in range(1, 8602)], rel=1e-12, abs=0)


def test_the_rates_that_were_published(cli: ScaleCLI) -> None:
    plan = _callback(cli, SequenceLengthStages).plan
    assert f"{plan.lr(2000):.3e}" == "5.997e-03"
    assert f"{plan.lr(2001):.3e}" == "5.076e-03"
    assert plan.lr(7038) == plan.lr(8601) == 0


def test_the_stages(cli: ScaleCLI) -> None:
    stages = _callback(cli, SequenceLengthStages).plan.stages
    sizes = [(s.sequence_length, s.batch_size, s.steps, s.micro_batch_size) for s in stages]
    assert sizes == [(128, 65_536, 7038, 64), (512, 32_768, 1563, 8)]
    assert [(s.moments, s.bias_correction_step) for s in stages] == [("keep", "reset")] * 2


def test_the_batches_are_whole_micro_batches_on_64_gpus(cli: ScaleCLI) -> None:
    trainer = yaml.safe_load(_RECIPE.read_text())["trainer"]
    gpus = trainer["devices"] * trainer["num_nodes"]
    assert gpus == 64
    for stage in _callback(cli, SequenceLengthStages).plan.stages:
        assert stage.batch_size % (gpus * stage.micro_batch_size) == 0


def test_where_it_runs_and_what_it_keeps(cli: ScaleCLI) -> None:
    written = yaml.safe_load(_RECIPE.read_text())["trainer"]
    asked = {key: written[key] for key in ("accelerator", "precision", "strategy")}
    assert asked == {"accelerator": "gpu", "precision": "bf16-mixed", "strategy": "ddp"}
    assert cli.trainer.precision == "bf16-mixed"
    checkpoint = _callback(cli, ModelCheckpoint)
    assert checkpoint._every_n_train_steps == 200
    assert checkpoint.save_last is True
    for kind in (TrustRatioMonitor, StepProgressBar, RunReport):
        assert _callback(cli, kind)


def test_the_optimizer_is_lamb_as_the_recipe_has_it(cli: ScaleCLI) -> None:
    optimizer = instantiate_class([torch.nn.Parameter(torch.zeros(2, 2))], cli.config_init["optimizer"])
    assert isinstance(optimizer, LAMB)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-6, 0.01)
    assert group["bias_correction"] is True
    assert optimizer.max_grad_norm == 1.0


def test_large_has_the_parameters_that_its_shape_says(cli: ScaleCLI) -> None:
    assert cli.model.hparams["size"] == "large"
    with torch.device("meta"):
        model = BertPretraining(size="large", vocab_size=30_522)
        model.configure_model()
    width, vocabulary, norm = 1024, 30_522, 2 * 1024
    embeddings = (vocabulary + 512 + 2) * width + norm
    layer = 4 * (width * width + width) + norm + (width * 4 * width + 4 * width) + (4 * width * width + width) + norm
    head = width * width + width + norm + vocabulary  # its matrix is the embeddings'
    assert sum(p.numel() for p in model.parameters()) == embeddings + 24 * layer + head == 335_174_458
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_vocabulary_and_the_longest_stage_fit_the_model(cli: ScaleCLI) -> None:
    longest = max(s.sequence_length for s in _callback(cli, SequenceLengthStages).plan.stages)
    assert longest <= cli.model.hparams["max_positions"]
    assert cli.datamodule.vocab_size % 64 == 0
