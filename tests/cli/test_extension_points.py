"""What LightningCLI documents for subclasses works under ScaleCLI, with the same meaning; the truth is LightningCLI itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch.optim.lr_scheduler import StepLR

from lightning_scale.cli import ScaleCLI

FIT = [
    "fit",
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=0",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
SGD_BY_STEP_LR = ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]
Seen = list[tuple[str, float, int]]


class Without(BoringModel):
    """Notes after each epoch the kind of optimizer, its rate and the number of its groups."""

    configure_optimizers = L.LightningModule.configure_optimizers  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    def on_train_epoch_end(self) -> None:
        optimizer = self.trainer.optimizers[0]
        groups = optimizer.param_groups
        self.seen.append((type(optimizer).__name__, round(groups[0]["lr"], 6), len(groups)))


class WithItsOwn(Without):
    def __init__(self, optim_config: dict | None = None) -> None:  # type: ignore[type-arg]
        super().__init__()
        self.optim_config = optim_config

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias], "weight_decay": 0.0}]
        assert self.optim_config is not None
        return instantiate_class((groups,), self.optim_config)


def overridden(cli: Any) -> Any:
    class Overridden(cli):  # type: ignore[misc]
        @staticmethod
        def configure_optimizers(module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
            assert isinstance(module, Without)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "epoch"}}

    return Overridden


def adding(*calls: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
    def make(cli: Any) -> Any:
        class Adding(cli):  # type: ignore[misc]
            def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
                for name, args, options in calls:
                    getattr(parser, name)(*args, **options)

            @staticmethod
            def configure_optimizers(module: Any, optimizer: Any, lr_scheduler: Any = None) -> Any:
                if lr_scheduler is None:
                    return optimizer
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "epoch"}}

        return Adding

    return make


ADAMW = ("add_optimizer_args", (torch.optim.AdamW,), {})
SEVERAL = ("add_optimizer_args", ((torch.optim.AdamW, torch.optim.SGD),), {})
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "configure_optimizers": (overridden, Without, SGD_BY_STEP_LR),
    "one class": (adding(ADAMW), Without, ["--optimizer.lr=0.1"]),
    "a tuple": (adding(SEVERAL), Without, ["--optimizer=SGD", "--optimizer.lr=0.1"]),
    "a tuple, and none chosen": (
        adding(SEVERAL, ("add_lr_scheduler_args", (StepLR,), {})),
        WithItsOwn,
        ["--model.optim_config={class_path: torch.optim.SGD, init_args: {lr: 0.3}}", "--lr_scheduler.step_size=1"],
    ),
    "one class, and the usual schedulers": (
        adding(ADAMW),
        Without,
        ["--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"],
    ),
    "one class of scheduler": (
        adding(("add_lr_scheduler_args", (StepLR,), {})),
        Without,
        ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler.step_size=1"],
    ),
    "nested keys": (
        adding(
            ("add_optimizer_args", (torch.optim.AdamW, "own.optimizer"), {}),
            ("add_lr_scheduler_args", (StepLR, "own.schedule"), {}),
        ),
        Without,
        ["--own.optimizer.lr=0.1", "--own.schedule.step_size=1"],
    ),
    "link_to": (
        adding(("add_optimizer_args", ((torch.optim.AdamW, torch.optim.SGD),), {"link_to": "model.optim_config"})),
        WithItsOwn,
        ["--optimizer=AdamW", "--optimizer.lr=0.1"],
    ),
    "link_to of one class": (
        adding(("add_optimizer_args", (torch.optim.AdamW,), {"link_to": "model.optim_config"})),
        WithItsOwn,
        ["--optimizer.lr=0.1"],
    ),
}


def run(cli: Any, module: Any, arguments: list[str], folder: Path, **options: Any) -> Seen:
    made = cli(module, BoringDataModule, args=[*FIT, f"--trainer.default_root_dir={folder}", *arguments], **options)
    seen: Seen = made.model.seen
    return seen


@pytest.mark.parametrize("name", CASES)
def test_as_under_lightnings_own_command(name: str, tmp_path: Path) -> None:
    """Both are given their classes by place."""
    make, module, arguments = CASES[name]
    lightnings = run(make(LightningCLI), module, arguments, tmp_path / "a")
    assert run(make(ScaleCLI), module, arguments, tmp_path / "b") == lightnings
    assert len(lightnings) == 3


def test_two_optimizers_are_refused(tmp_path: Path) -> None:
    make = adding(ADAMW, ("add_optimizer_args", (torch.optim.SGD, "second"), {}))
    with pytest.raises(MisconfigurationException, match="expects at most one optimizer"):
        run(make(ScaleCLI), Without, ["--optimizer.lr=0.1", "--second.lr=0.1"], tmp_path)


def test_auto_configure_optimizers_turned_off(tmp_path: Path) -> None:
    made = run(ScaleCLI, BoringLike, [], tmp_path, auto_configure_optimizers=False)
    assert {step[:2] for step in made} <= {("SGD", 0.1), ("SGD", 0.01), ("SGD", 0.001), ("SGD", 0.0001)}


class BoringLike(Without):
    configure_optimizers = BoringModel.configure_optimizers


def test_the_rest_by_place(tmp_path: Path) -> None:
    """The callback that saves the configuration, and its options."""
    arguments = [*FIT, f"--trainer.default_root_dir={tmp_path}", "--optimizer=SGD", "--optimizer.lr=0.1"]
    made = ScaleCLI(Without, BoringDataModule, None, {"overwrite": False}, L.Trainer, args=arguments)
    assert made.save_config_callback is None and made.save_config_kwargs == {"overwrite": False}
