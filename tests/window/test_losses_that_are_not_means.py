"""What a window cannot mend: losses that tie the samples of a micro-batch together. docs/batches.md has these numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation
from tests.docs.pages import ROOT
from tests.toys import trainer

BATCH, MICRO = 64, 16


def digits() -> TensorDataset:
    """Real images: scikit-learn's handwritten digits, 8 × 8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[:BATCH]
    return TensorDataset(torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order])


class Digits(L.LightningModule):
    """Keeps the gradient of its first step."""

    def __init__(self, loss: Callable[[nn.Module, Tensor, Tensor], Any], norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(64, 32), middle, nn.Tanh(), nn.Linear(32, 10))
        self._loss = loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self._loss(self.net, *batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.gradient = torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def classes(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def contrastive(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """InfoNCE: each image against its shifted copy among those of all others, at temperature 0.1."""
    a, b = (F.normalize(net(view), dim=1) for view in (x, x.roll(1, 1)))
    return F.cross_entropy(a @ b.T / 0.1, torch.arange(len(x)))


def two_normalizers(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A mean over the images of digits below 3, and one over the others, added up."""
    each, rare = F.cross_entropy(net(x), y, reduction="none"), y < 3
    return each[rare].mean() + each[~rare].mean()


def distance(tmp_path: Path, make: Callable[[], Digits], micro: int = MICRO) -> float:
    """‖g - g₁‖ / ‖g₁‖ of a step in micro-batches beside the whole batch's."""
    found = []
    for size in (micro, BATCH):
        module = make()
        loader = DataLoader(digits(), batch_size=size)
        trainer(tmp_path, [GradientAccumulation(BATCH)], max_steps=1).fit(module, loader)
        found.append(module.gradient)
    return float((found[0] - found[1]).norm() / found[1].norm())


CASES: dict[str, Callable[[], Digits]] = {
    "a mean over samples": lambda: Digits(classes),
    "a contrastive loss": lambda: Digits(contrastive),
    "batch norm": lambda: Digits(classes, norm=True),
    "two normalizers": lambda: Digits(two_normalizers),
}


@pytest.mark.parametrize("name", CASES)
def test_the_page_says_how_far(tmp_path: Path, name: str) -> None:
    far = distance(tmp_path, CASES[name])
    page = (ROOT / "docs/batches.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {name}[^|]*\|[^|]*\| ([^|]+) \|", page, flags=re.MULTILINE)
    assert row is not None, f"no row of {name}; it is {far:.2g}"
    said = row[1].strip()
    assert far < 1e-6 if said == "rounding" else far == pytest.approx(float(said.rstrip("%")) / 100, rel=0.1), far
