"""Batches of 64 as 64 x 1 and 16 x 4 on one process and as 8 x 4 on two: the same weights after 20 optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.optim import LAMB
from tests.distributed.launch import run_ranks
from tests.distributed.ranks import ddp_options
from tests.toys import trainer

STEPS = 20
KINDS = [(optimizer, items) for optimizer in ("Adam", "LAMB") for items in (False, True)]
PRECISIONS = {torch.float64: 1e-12, torch.float32: 2e-6}
"""The largest difference allowed between two weights, most of which lie between 0.01 and 1, after 20 steps that move them
by about 0.2. A rounding is 1e-16 or 6e-8 of such a weight, and Adam and LAMB divide by the gradient's own size, so that
one which is the small rest of large terms passes more than its share on: 2e-16 and 1.2e-7 were measured, and other
processors may add in another order. A wrong mean is 1e-3 or more."""


class Regression(L.LightningModule):
    """A network on random vectors; a sample may have 0 to 6 items, each with a target of its own."""

    def __init__(self, optimizer: str, items: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6)).to(dtype)
        self._optimizer, self._items = optimizer, items

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        vectors, targets, counts = batch
        losses = (self.net(vectors) - targets).square()
        if not self._items:
            return losses.mean()
        exist = torch.arange(6) < counts[:, None]
        return {"loss": losses[exist].sum() / exist.sum().clamp(min=1), "num_items": exist.sum()}

    def configure_optimizers(self) -> Any:
        if self._optimizer == "Adam":
            return torch.optim.Adam(self.parameters(), lr=0.01)
        return LAMB(self.named_parameters(), lr=0.02, weight_decay=0.01, max_grad_norm=1.0)


def weights(
    root: Path, kind: tuple[str, bool], dtype: torch.dtype, micro: int, ours: bool = True, size: int = 201
) -> Tensor:
    """All weights in one row, after 20 steps: epochs of 64, 64, 64 and 9 samples, the last uneven on two ranks."""
    L.seed_everything(0, verbose=False)
    module = Regression(*kind, dtype)
    draw = torch.Generator().manual_seed(1)
    vectors, targets = (torch.randn(size, n, generator=draw, dtype=dtype) for n in (8, 6))
    dataset = TensorDataset(vectors, targets, torch.randint(0, 7, (size,), generator=draw))
    loader = DataLoader(dataset, batch_sampler=ResumableBatchSampler(size, micro, seed=3))
    callbacks: list[L.Callback] = [GradientAccumulation(64)] if ours else []
    accumulate = 1 if ours else 64 // micro
    run = trainer(root, callbacks, max_steps=STEPS, max_epochs=-1, accumulate_grad_batches=accumulate, **ddp_options())
    run.fit(module, loader)
    assert run.global_step == STEPS
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def two_ranks(folder: str) -> list[Tensor]:
    """Of every kind and precision, as 8 x 4 on each rank."""
    return [weights(Path(folder), kind, dtype, 8) for kind in KINDS for dtype in PRECISIONS]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[list[Tensor]]:
    return run_ranks(__name__, "two_ranks", tmp_path_factory.mktemp("ranks"))


pytestmark = pytest.mark.timeout(200)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_how_a_batch_is_split_does_not_matter(
    tmp_path: Path, ranks: list[list[Tensor]], kind: tuple[str, bool], dtype: torch.dtype
) -> None:
    whole = weights(tmp_path, kind, dtype, 64)
    split = weights(tmp_path, kind, dtype, 16)
    place = KINDS.index(kind) * len(PRECISIONS) + list(PRECISIONS).index(dtype)
    first, second = (rank[place] for rank in ranks)
    assert torch.equal(first, second)
    assert whole.dtype == first.dtype == dtype
    for other in (split, first):
        assert float((other - whole).abs().max()) < PRECISIONS[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_lightnings_own_accumulation_fails_where_items_are_uneven(tmp_path: Path, kind: tuple[str, bool]) -> None:
    """So the tolerances tell a mean of means from the mean. (Epochs of 3 whole batches here, for it knows no others.)"""
    whole = weights(tmp_path, kind, torch.float32, 64, size=192)
    theirs = weights(tmp_path, kind, torch.float32, 16, ours=False, size=192)
    difference = float((theirs - whole).abs().max())
    _, uneven = kind
    assert difference > 1e-3 if uneven else difference < PRECISIONS[torch.float32]
