"""The same training on one process with whole parameters and on ZeRO's ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from tests.distributed.sharded import MAKERS, groups, network
from tests.toys import trainer

STEPS = 10
SAMPLES = 500


@dataclass
class Case:
    """One training; without ``zero`` in one process."""

    optimizer: str = "LAMB"
    zero: dict[str, Any] | None = None
    batch: Callable[[], L.Callback] = lambda: GradientAccumulation(16)
    fit: dict[str, Any] = field(default_factory=dict)
    """More of the Trainer's options."""
    make_network: Callable[[], nn.Module] = network
    steps: int = STEPS
    more: Callable[[], list[L.Callback]] = list


def ramp() -> L.Callback:
    return BatchSizeRamp("0:8 24:12 60:16 92:24", lr_scaling="sqrt")


class Language(L.LightningModule):
    """A network that tells a token's successor."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = case.make_network()
        self._make = MAKERS[case.optimizer]
        self.stats: dict[str, list[float]] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        tokens, counts = batch
        exist = torch.arange(6, device=tokens.device) < counts[:, None]
        losses = nn.functional.cross_entropy(self.net(tokens).float().transpose(1, 2), tokens * 5 % 13, reduction="none")
        return {"loss": losses[exist].sum() / exist.sum().clamp(min=1), "num_items": exist.sum()}

    def configure_optimizers(self) -> Any:
        return self._make(groups(self.net))


def data(micro: int) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 13, (SAMPLES, 6), generator=draw)
    dataset = TensorDataset(tokens, torch.randint(1, 7, (SAMPLES,), generator=draw))
    return DataLoader(dataset, batch_sampler=ResumableBatchSampler(SAMPLES, micro, seed=3))


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
            found[name] = p.detach().clone()
    return found


def stats_of(optimizer: Any) -> dict[str, list[float]]:
    if not hasattr(optimizer, "layer_stats"):
        return {}
    return {name: [float(value) for value in stats] for name, stats in optimizer.layer_stats().items()}


def options(case: Case) -> dict[str, Any]:
    """Of the Trainer."""
    if case.zero is None:
        return case.fit
    from lightning_scale.strategies import ZeROStrategy

    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else _launched()
    return {**case.fit, "strategy": ZeROStrategy(**case.zero), "devices": ranks}


def _launched() -> int:
    import os

    return int(os.environ["WORLD_SIZE"])


def train(root: Path, case: Case, **fit: Any) -> tuple[L.Trainer, Language]:
    """Fit; micro-batches of 16 in one process, of 4 on ranks, so that there are windows of several."""
    L.seed_everything(0, verbose=False)
    module = Language(case)
    loader = data(16 if case.zero is None else 4)
    run = trainer(root, [case.batch(), *case.more()], max_steps=case.steps, max_epochs=-1, **options(case))
    run.fit(module, loader, **fit)
    assert run.global_step == case.steps
    return run, module


def result(root: Path, case: Case, **fit: Any) -> dict[str, Any]:
    """What a training ends with: whole weights and the last step's statistics."""
    run, module = train(root, case, **fit)
    return {"weights": whole(module), "stats": stats_of(users_optimizer(run))}
