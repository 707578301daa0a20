"""A package that imports ``pytorch_lightning`` runs unedited; in a process of its own, for imports last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = """
import pytorch_lightning as pl
import pytorch_lightning.callbacks.early_stopping
import torch
from lightning_fabric.utilities.seed import seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers.csv_logs import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.rank_zero import rank_zero_info


class Counts(Callback):
    steps = 0

    def on_before_optimizer_step(self, trainer, module, optimizer):
        Counts.steps += 1


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(32, 4), batch_size=4)
"""
FIT = """
import foreign, lightning.pytorch as L, lightning.fabric.utilities.seed as seed
from lightning_scale.callbacks import GradientAccumulation
assert foreign.pl is L and foreign.seed_everything is seed.seed_everything and L.__spec__.name == "lightning.pytorch"
import pytorch_lightning.strategies.ddp, lightning.pytorch.strategies.ddp as real
assert pytorch_lightning.strategies.ddp is real and real.__spec__.name == real.__name__ == "lightning.pytorch.strategies.ddp"
options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)
L.Trainer(callbacks=[GradientAccumulation(16), foreign.Counts()], **options).fit(foreign.Module(), foreign.Data())
print("steps", foreign.Counts.steps)
"""
ALIAS = (
    "from lightning_scale.alias import alias_pytorch_lightning; alias_pytorch_lightning(); alias_pytorch_lightning()\n"
)
# Imports of the real one fail, as where it is not installed.
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pytorch_lightning", "lightning_fabric"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def python(folder: Path, code: str, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "foreign.py").write_text(FOREIGN)
    command = [sys.executable, "-W", "ignore", "-c", code, *more]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("before", ["", ABSENT], ids=["installed", "not installed"])
def test_it_trains_unedited(tmp_path: Path, before: str) -> None:
    done = python(tmp_path, before + ALIAS + FIT)
    assert "steps 2" in done.stdout, done.stderr[-2000:]


def test_too_late_is_said(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    done = python(tmp_path, "import pytorch_lightning\n" + ALIAS)
    assert "has been imported before it could become lightning.pytorch: call" in done.stderr


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    done = python(tmp_path, ALIAS + "import pytorch_lightning.no_such_module")
    assert "No module named 'pytorch_lightning.no_such_module'" in done.stderr


def test_the_commands_flag(tmp_path: Path) -> None:
    code = "from lightning_scale.cli import main; main(); import foreign; print('steps', foreign.Counts.steps)"
    arguments = [
        "fit", "--alias_pytorch_lightning", "--model=foreign.Module", "--data=foreign.Data", "--optimizer=SGD",
        "--optimizer.lr=0.1", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false",
        "--trainer.enable_checkpointing=false", "--trainer.callbacks+=foreign.Counts",
        "--trainer.callbacks+=lightning_scale.callbacks.GradientAccumulation", "--trainer.callbacks.batch_size=16",
    ]  # fmt: skip
    done = python(tmp_path, code, *arguments)
    assert "steps 2" in done.stdout, done.stderr[-2000:]
