"""Small modules and data whose gradients are known, and a Trainer that keeps quiet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.data import ResumableBatchSampler, StageData


class Tally(L.LightningModule):
    """Sample i's gradient is 1 in element i: a step's gradient says which samples it is the mean of."""

    def __init__(self, size: int, optimizer: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.gradients: list[Tensor] = []
        self._optimizer = optimizer or (lambda parameters: SGD(parameters, lr=1.0))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (index,) = batch
        loss = self.weight[index].mean()
        self.log("train_loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        assert self.weight.grad is not None
        self.gradients.append(self.weight.grad.clone())

    def configure_optimizers(self) -> Any:
        return self._optimizer([self.weight])


class Weighted(Tally):
    """The loss is the mean over ``index % 5 + 1`` items a sample."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        (index,) = batch
        items = index % 5 + 1
        return {"loss": (self.weight[index] * items).sum() / items.sum(), "num_items": items.sum()}


def indices(size: int, micro_batch: int, **options: Any) -> DataLoader[Any]:
    """The numbers 0 to size-1, in order, in micro-batches."""
    return DataLoader(TensorDataset(torch.arange(size)), batch_size=micro_batch, **options)


class Net(L.LightningModule):
    """A small network on random vectors; notes (step, rate, gradient norm) of every optimizer step."""

    def __init__(self, configure: Callable[[L.LightningModule], Any], dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.steps: list[tuple[int, float, float]] = []
        self._configure = configure

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = (self.net(batch[0]) - 1).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", (self.net(batch[0]) - 1).square().mean())

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        grad = self.net[0].weight.grad
        self.steps.append((self.trainer.global_step, float(optimizer.param_groups[0]["lr"]), float(grad.norm())))

    def configure_optimizers(self) -> Any:
        return self._configure(self)


class Vectors(L.LightningDataModule):
    """100 random vectors that can be served in stages."""

    def __init__(self, micro_batch_size: int = 4) -> None:
        super().__init__()
        self.micro_batch_size = micro_batch_size
        self.dataset = TensorDataset(torch.randn(100, 8, generator=torch.Generator().manual_seed(1)))
        self.stage: StageData | None = None
        self.stages: list[StageData] = []

    def set_stage(self, stage: StageData) -> None:
        self.stage = stage
        self.stages.append(stage)

    def train_dataloader(self) -> DataLoader[Any]:
        stage = self.stage
        sampler = ResumableBatchSampler(
            len(self.dataset),
            (stage and stage.micro_batch_size) or self.micro_batch_size,
            epoch_samples=stage.samples if stage else None,
            samples_consumed=stage.samples_consumed if stage else 0,
        )
        return DataLoader(self.dataset, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=50)


class Recorder(CSVLogger):
    """Keeps every call of ``log_metrics``: (metrics, step)."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((dict(metrics), -1 if step is None else step))
        super().log_metrics(metrics, step)

    def values(self, key: str) -> dict[int, float]:
        """One metric by step, as last written."""
        return {step: metrics[key] for metrics, step in self.calls if key in metrics}


class SaveAt(L.Callback):
    """Saves once where a hook comes at or after a micro-batch, counted over epochs from 0."""

    def __init__(self, path: Path, micro_batch: int, hook: str = "on_train_batch_end") -> None:
        self.path, self.micro_batch = path, micro_batch
        setattr(self, hook, self._save)

    def _save(self, fit: L.Trainer, *args: Any) -> None:
        if fit.fit_loop.total_batch_idx >= self.micro_batch and not self.path.exists():
            fit.save_checkpoint(self.path)


class Boom(L.Callback):
    """Raises after one micro-batch."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_train_batch_end(
        self, fit: L.Trainer, module: L.LightningModule, out: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.micro_batch:
            raise RuntimeError("boom")


def trainer(root: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A CPU Trainer without bars, checkpoints and summaries."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": root,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=callbacks, **{**defaults, **options})
