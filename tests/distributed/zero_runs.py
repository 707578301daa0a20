"""The same training on one process with whole parameters and on ZeRO's ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.data import ResumableBatchSampler, StageData
from lightning_scale.optim.state.reset import reset_bias_correction, reset_moments
from tests.distributed.meshes import largest, relative
from tests.distributed.sharded import groups, network
from tests.toys import trainer

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # also where there is a GPU; before DeepSpeed is imported

DEEPSPEED = find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="DeepSpeed is not installed")

STEPS = 10
SAMPLES = 118  # windows of 24, and a last one of 22, which is a step of its own


@dataclass
class Case:
    """One training; without ``zero`` and ``fsdp2`` in one process."""

    optimizer: str = "LAMB"
    zero: dict[str, Any] | None = None
    batch: Callable[[], L.Callback] | None = lambda: GradientAccumulation(24)
    """``None``: no callback of this package, one micro-batch a step."""
    fit: dict[str, Any] = field(default_factory=dict)
    """More of the Trainer's options."""
    whole_fit: dict[str, Any] = field(default_factory=dict)
    """Of the one in one process."""
    make_network: Callable[[], nn.Module] = network
    steps: int = STEPS
    staged: bool = False
    """``batch`` brings stages: of the length and micro-batch that `Staged` is told."""
    late: bool = False
    """Build the network in ``configure_model``, where ZeRO-3 takes its parameters apart one by one."""
    nan_at: int | None = None
    """The step at which the last rank's loss is NaN."""
    more: Callable[[], list[L.Callback]] = list
    fsdp2: dict[str, Any] | None = None


class Directions(nn.Module):
    """Gradients that do not depend on the weights, and have the same bits everywhere: what is rounded to 8 or 16 bits shows
    every difference in a bit, and a matrix product's depend on where its operands lie in memory.

    Layers large enough for 8-bit state lie between small ones; the edges of two ranks' slices and shares are edges of blocks,
    too, for a block that is cut has two scales in place of one.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = {"first": (12,), "wide": (768, 6), "narrow": (6, 768), "both": (768, 6), "last": (12,)}
        for name, shape in shapes.items():
            self.register_parameter(f"layers_{name}", nn.Parameter(torch.randn(shape) / 3))
        self.embedding = nn.Parameter(torch.randn(13, 6))
        self.single = nn.Parameter(torch.randn(1, 6))
        self.bias = nn.Parameter(torch.randn(13))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def weight_of(self, name: str, step: int) -> float | None:
        """Of a parameter's term in the loss; ``None``: it has none."""
        return 1.0

    def forward(self, step: int) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        terms = []
        for name, p in self.named_parameters():
            direction = torch.randn(p.shape, generator=draw, dtype=torch.float32)
            weight = self.weight_of(name, step)
            if p.requires_grad and weight is not None:
                terms.append((p * (direction * weight).to(p)).sum())
        loss: Tensor = torch.stack(terms).sum()
        return loss


class Sometimes(Directions):
    """The loss depends on one layer at one step of three, on two from a later step on, on one never; one has a gradient of zero
    at first."""

    def weight_of(self, name: str, step: int) -> float | None:
        there = {"bias": step % 3 == 0, "embedding": step >= 2, "layers_narrow": step >= 3, "layers_first": False}
        if not there.get(name, True):
            return None
        return 0.0 if name == "single" and step < 2 else 1.0


class ResetAt(L.Callback):
    """Starts moments and step counts again after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, run: L.Trainer, *args: Any) -> None:
        if run.global_step == self.step:
            self.step = -1
            reset_moments(run.optimizers[0])
            reset_bias_correction(run.optimizers[0])


class Language(L.LightningModule):
    """A network that tells a token's successor."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._make_network = case.make_network
        if not case.late:
            self.net = case.make_network()
        from tests.distributed.zero_cases import OPTIMIZERS

        self._make = OPTIMIZERS[case.optimizer]
        self._nan_at = case.nan_at

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = self._make_network()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        if isinstance(self.net, Directions):
            return self.net(self.trainer.global_step)
        tokens, counts = batch
        exist = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        losses = nn.functional.cross_entropy(
            self.net(tokens).float().transpose(1, 2), tokens * 5 % 13, reduction="none"
        )
        if self._nan_at == self.trainer.global_step and self.global_rank == self.trainer.world_size - 1:
            losses = losses * torch.nan
        return {"loss": losses[exist].sum() / exist.sum().clamp(min=1), "num_items": exist.sum()}

    def configure_optimizers(self) -> Any:
        return self._make(groups(self.net))


def data(case: Case) -> DataLoader[Any]:
    """A whole batch of 24 at once in one process, two or three micro-batches on each rank."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 13, (SAMPLES, 6), generator=draw)
    dataset = TensorDataset(tokens, torch.randint(1, 7, (SAMPLES,), generator=draw))
    if case.batch is None:
        return DataLoader(dataset, batch_size=24, drop_last=True)
    micro = 24 if case.zero is case.fsdp2 is None else {1: 12, 2: 4, 3: 4, 4: 3}[int(os.environ["WORLD_SIZE"])]
    return DataLoader(dataset, batch_sampler=ResumableBatchSampler(SAMPLES, micro, seed=3))


class Staged(L.LightningDataModule):
    """Rows of a stage's length."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._dataset, self._one_process = data(case).dataset, case.zero is None

    def set_stage(self, stage: StageData) -> None:
        self.stage = stage

    def train_dataloader(self) -> DataLoader[Any]:
        tokens, counts = self._dataset.tensors
        rows = TensorDataset(tokens[:, : self.stage.sequence_length], counts)
        sampler = ResumableBatchSampler(
            SAMPLES, 24 if self._one_process else 4, seed=3, epoch_samples=self.stage.samples
        )
        return DataLoader(rows, batch_sampler=sampler)


def users_optimizer(run: L.Trainer) -> Any:
    outer: Any = run.optimizers[0]
    return getattr(outer, "optimizer", outer)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """All parameters; every rank calls it."""
    found = {}
    for name, p in module.named_parameters():
        if hasattr(p, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([p]):
                found[name] = p.detach().clone()
        else:
            found[name] = (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
    return found


def stats_of(optimizer: Any) -> dict[str, list[float]]:
    if not hasattr(optimizer, "layer_stats"):
        return {}
    return {name: [float(value) for value in stats] for name, stats in optimizer.layer_stats().items()}


def options(case: Case) -> dict[str, Any]:
    """Of the Trainer."""
    if case.zero is case.fsdp2 is None:
        return {**case.fit, **case.whole_fit}
    from lightning_scale.strategies import FSDP2Strategy, ZeROStrategy

    strategy = ZeROStrategy(**case.zero) if case.zero is not None else FSDP2Strategy(**(case.fsdp2 or {}))
    return {**case.fit, "strategy": strategy, "devices": int(os.environ["WORLD_SIZE"])}


def train(root: Path, case: Case, callbacks: Sequence[L.Callback] = (), **fit: Any) -> tuple[L.Trainer, Language]:
    """Fit, for the case's steps."""
    L.seed_everything(0, verbose=False)
    module = Language(case)
    parts = [*([case.batch()] if case.batch is not None else []), *case.more(), *callbacks]
    steps = -1 if case.staged else case.steps
    run = trainer(root, parts, max_steps=steps, max_epochs=-1, use_distributed_sampler=False, **options(case))
    run.fit(module, Staged(case) if case.staged else data(case), **fit)
    return run, module


def result(root: Path, case: Case, **fit: Any) -> dict[str, Any]:
    """Train, and see what it ends with."""
    run, module = train(root, case, **fit)
    assert run.global_step == case.steps
    return result_of(run, module)


def result_of(run: L.Trainer, module: nn.Module) -> dict[str, Any]:
    """What a training ends with: whole weights and the last step's statistics."""
    optimizer = users_optimizer(run)
    skipped = int(getattr(optimizer, "skipped_steps", 0))
    return {"weights": whole(module), "stats": stats_of(optimizer), "skipped": skipped}


def worst(found: dict[str, Any], truth: dict[str, Any]) -> tuple[float, float]:
    """The largest relative differences of weights and of statistics."""
    assert found["weights"].keys() == truth["weights"].keys()
    assert found["stats"].keys() == truth["stats"].keys()
    weights = largest(relative(found["weights"][name], truth["weights"][name]) for name in truth["weights"])
    pairs = [pair for name in truth["stats"] for pair in zip(found["stats"][name], truth["stats"][name], strict=True)]
    return weights, largest(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)
