"""The configurations through the command, and the recipe against the published table."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import yaml
from PIL import Image
from torch.optim import Optimizer

from examples.resnet import ImageFolders, ResNet
from lightning_scale.callbacks import LEGWWarmup
from lightning_scale.cli import ScaleCLI, main
from lightning_scale.optim import LAMB, LARS

_EXAMPLE = Path(__file__).parents[3] / "examples" / "resnet"
_IMAGENET = 1_281_167


_RATES: list[float] = []


class RateOfSteps(L.Callback):
    """Notes the rate that every optimizer step is taken with."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _RATES.clear()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        _RATES.append(optimizer.param_groups[0]["lr"])


def _read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((_EXAMPLE / name).read_text())
    return config


def _options(config: dict[str, Any], callback: str) -> dict[str, Any]:
    callbacks = [c for c in config["trainer"]["callbacks"] if isinstance(c, dict)]
    (options,) = [c["init_args"] for c in callbacks if c["class_path"].endswith(f".{callback}")]
    assert isinstance(options, dict)
    return options


def _on_this_machine(config: dict[str, Any]) -> None:
    """Leave out what needs 64 GPUs."""
    del config["trainer"]["devices"], config["trainer"]["num_nodes"]
    config["trainer"].update(accelerator="cpu", strategy="auto", precision="32-true")


def test_digits_learns_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five epochs of half its batch: every rate, and what it learns."""
    monkeypatch.chdir(tmp_path)
    batch, steps = 64, 112
    main(
        [
            "fit",
            f"--config={_EXAMPLE / 'digits.yaml'}",
            f"--trainer.max_steps={steps}",
            f"--lr_scheduler.total_iters={steps}",
            "--trainer.log_every_n_steps=1",
            "--config",
            str(_smaller_batch(tmp_path, batch, steps)),
        ]
    )
    (written,) = (tmp_path / "runs" / "resnet").glob("**/metrics.csv")
    with written.open() as file:
        rows = list(csv.DictReader(file))
    warmup = 0.14 * 1437 / 16
    k = batch / 16
    # The step after t: √k times the tuned rate, its warmup, and (1 - share)².
    expected = [4.0 * math.sqrt(k) * min(1, t / warmup) * (1 - (t - 1) / steps) ** 2 for t in range(1, steps + 1)]
    assert pytest.approx(expected, rel=1e-9) == _RATES
    accuracies = [float(row["val_accuracy"]) for row in rows if row.get("val_accuracy")]
    assert accuracies[-1] > 0.8  # a tenth is guessing


def _smaller_batch(folder: Path, batch: int, steps: int) -> Path:
    callbacks = _read("digits.yaml")["trainer"]["callbacks"]
    callbacks.append(f"{__name__}.RateOfSteps")
    config = {"trainer": {"callbacks": callbacks}}
    _options(config, "GradientAccumulation")["batch_size"] = batch
    _options(config, "ValidateEvery")["interval"] = f"{steps // 2} steps"
    (folder / "smaller.yaml").write_text(yaml.safe_dump(config))
    return folder / "smaller.yaml"


@pytest.mark.parametrize(("halvings", "epochs"), [(0, 20), (3, 2.5), (6, 0.3125)])
def test_resnet50_is_the_published_table(halvings: int, epochs: float) -> None:
    """The LAMB paper's: 4/(2^(i/2) · 100), and the warmup's epochs, at 32,768 / 2^i."""
    config = _read("resnet50.yaml")
    batch = _options(config, "GradientAccumulation")["batch_size"] >> halvings
    rule = LEGWWarmup(**_options(config, "LEGWWarmup")).rule
    lr = config["optimizer"]["init_args"]["lr"]
    assert rule.lr_factor(batch) * lr == pytest.approx(4 / (2 ** (halvings / 2) * 100), rel=1e-12)
    assert float(rule.warmup_epochs(batch, samples_per_epoch=_IMAGENET)) == pytest.approx(epochs, rel=1e-12)


def test_resnet50_is_90_epochs_and_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _read("resnet50.yaml")
    batch, trainer = _options(config, "GradientAccumulation")["batch_size"], config["trainer"]
    assert batch % (config["data"]["init_args"]["micro_batch_size"] * trainer["devices"] * trainer["num_nodes"]) == 0
    assert trainer["max_steps"] == config["lr_scheduler"]["init_args"]["total_iters"] == round(90 * _IMAGENET / batch)
    _on_this_machine(config)
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    cli = ScaleCLI(args=["--config", "here.yaml"], run=False)
    assert isinstance(cli.model, ResNet) and isinstance(cli.datamodule, ImageFolders)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ([], LARS),
        (
            ["--optimizer=lightning_scale.optim.LAMB", "--optimizer.lr=5.0e-3", "--optimizer.weight_decay=0.01"],
            LAMB,
        ),
    ],
)
def test_resnet50_trains_on_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], kind: type
) -> None:
    """Two steps of eight tiny images, by the small network: all the rest is as it stands in the file."""
    config = _read("resnet50.yaml")
    _on_this_machine(config)
    config["model"]["init_args"].update(size="small", classes=2)
    config["data"]["init_args"].update(root=str(_folders(tmp_path)), image_size=8, micro_batch_size=4, num_workers=0)
    config["trainer"].update(max_steps=2)
    _options(config, "GradientAccumulation")["batch_size"] = 8
    _options(config, "LEGWWarmup")["base_batch_size"] = 4
    _options(config, "ValidateEvery")["interval"] = "1 steps"
    _options(config, "ModelCheckpoint")["every_n_train_steps"] = 1
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-scale"])
    cli = ScaleCLI(args=["fit", "--config", "short.yaml", *more])
    assert type(cli.trainer.optimizers[0]) is kind
    assert cli.trainer.global_step == 2
    assert (tmp_path / "runs" / "resnet50" / "checkpoints" / "last.ckpt").exists()


def _folders(root: Path) -> Path:
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for i in range(8):
                pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def test_missing_folders_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _read("resnet50.yaml")
    _on_this_machine(config)
    config["model"]["init_args"]["size"] = "small"
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "here.yaml"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lightning-scale: there is no folder imagenet/train: write in data.root")


def test_the_package_is_quick_to_import() -> None:
    code = "import sys, examples.resnet as r; print(sorted({'torch', 'sklearn', 'PIL'} & set(sys.modules)), dir(r))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=_EXAMPLE.parents[1], check=True
    )
    loaded, names = result.stdout.split("]", 1)
    assert loaded == "["
    assert all(name in names for name in ("Digits", "ImageFolders", "ResNet"))
