"""One run: train a task's network with the package's callbacks, and look at the held-out samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from examples.scaling_study.rates import LEGW_WARMUP, course
from examples.scaling_study.recipes import Recipe
from examples.scaling_study.rows import Outcome
from examples.scaling_study.tasks.task import IGNORED, MemoryDataset, Samples, Task, TaskData
from lightning_scale.callbacks import GradientAccumulation, LEGWWarmup
from lightning_scale.data import ResumableBatchSampler

_LAST_SHARE = 0.05  # one step's loss is noise


class _Training(L.LightningModule):
    def __init__(self, network: nn.Module, configure: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.network = network
        self._configure = configure
        self.losses: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        return self._configure(self.network)

    def training_step(self, batch: Samples, batch_idx: int) -> Tensor:
        loss = _loss(self.network(*batch.inputs), batch.targets)
        self.losses.append(loss.detach())
        return loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing reads logs here, and to keep them takes a third of a small network's step."""

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """As `log`."""


def train(task: Task, data: TaskData, recipe: Recipe, rate: float, k: int, seed: int, device: str) -> Outcome:
    """Train at k times the task's base batch, for its epochs.

    Args:
        task: What to learn.
        data: Its samples.
        recipe: The optimizer.
        rate: The one at the base batch.
        k: The batch as a multiple of the base batch.
        seed: Of the weights and the order of samples.
        device: "cpu" or "cuda".
    """
    begin = time.process_time()
    batch_size, samples = k * task.base_batch_size, task.epochs * data.training_size
    steps = samples // batch_size
    torch.manual_seed(seed)
    module = _Training(task.network(), partial(_configure, recipe=recipe, rate=rate, k=k, steps=steps, task=task))
    sampler = ResumableBatchSampler(data.training_size, batch_size, seed=seed, epoch_samples=samples, positions=True)
    loader = DataLoader(MemoryDataset(data.training), batch_sampler=sampler, collate_fn=_as_it_is)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_epochs=-1,
        max_steps=steps,
        callbacks=[
            GradientAccumulation(batch_size, last_window="drop"),
            LEGWWarmup(
                task.base_batch_size,
                LEGW_WARMUP if recipe.warmup_epochs is None else "0 steps",
                lr_scaling=recipe.lr_scaling,
            ),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    assert trainer.global_step == steps, f"{trainer.global_step} steps instead of {steps}"
    network = module.network.to(device).eval()
    tuning, test = (_evaluate(network, part, device) for part in (data.tuning, data.test))
    last = module.losses[-max(1, round(_LAST_SHARE * steps)) :]
    train_loss = fmean(torch.stack(last).tolist())
    return Outcome(
        steps,
        train_loss,
        *tuning,
        *test,
        diverged=_diverged(train_loss, tuning[0], test[0], data.classes),
        seconds=time.process_time() - begin,
    )


def _configure(network: nn.Module, recipe: Recipe, rate: float, k: int, steps: int, task: Task) -> Any:
    optimizer = recipe.build(network, rate, k)
    warmup = (recipe.warmup_epochs or 0.0) / task.epochs * steps
    scheduler = LambdaLR(optimizer, partial(course, steps=steps, warmup_steps=warmup, k=k))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _as_it_is(batch: Any) -> Any:
    """What `MemoryDataset.__getitems__` gives is a batch already."""
    return batch


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that count."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def _evaluate(network: nn.Module, samples: Samples, device: str) -> tuple[float, float]:
    """Loss and accuracy over the targets that count."""
    targets = samples.targets.to(device)
    logits = network(*(each.to(device) for each in samples.inputs))
    right = (logits.argmax(-1) == targets)[targets != IGNORED]
    return float(_loss(logits, targets)), float(right.float().mean())


def _diverged(train_loss: float, tuning_loss: float, test_loss: float, classes: int) -> bool:
    finite = all(map(math.isfinite, (train_loss, tuning_loss, test_loss)))
    return not finite or train_loss >= math.log(classes)
