"""Models whose forward and backward pass is measured, and the measure: what torch's allocator says it gave and took back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset
from transformers import BertConfig

from examples.bert.network import BertAtPositions

LENGTH, VOCABULARY, PLACES = 48, 1000, 8


class Bert(L.LightningModule):
    """Three layers, of width 96."""

    data = TensorDataset(
        torch.randint(VOCABULARY, (64, LENGTH)),
        torch.randint(LENGTH, (64, PLACES)),
        torch.randint(VOCABULARY, (64, PLACES)),
    )

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = BertAtPositions(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=384,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                max_position_embeddings=LENGTH,
            )
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        logits = self.net(batch[0], batch[1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[2].flatten())
        self.log("train_loss", loss.detach())
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, foreach=False)


class Conv(L.LightningModule):
    """Three convolutions with batch norms."""

    data = TensorDataset(torch.randn(64, 3, 24, 24), torch.randint(10, (64,)))

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(64, 10)),
        )

    def training_step(self, batch: list[Tensor]) -> Tensor:  # without batch_idx, as Lightning allows
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Recomputed(L.LightningModule):
    """Layers whose insides are computed a second time in the backward pass."""

    data = TensorDataset(torch.randn(64, 32))

    def __init__(self, recompute: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 32)) for _ in range(6))
        self.recompute = recompute

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = batch[0]
        options = {"use_reentrant": False, "preserve_rng_state": False}  # 5 kB a block, beside what tensors take
        for block in self.blocks:
            hidden = checkpoint(block, hidden, **options) if self.recompute else block(hidden)
        return hidden.square().mean()


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` held at once, of those that it asked torch's CPU allocator for."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def really(model: Any, samples: int, parameters: torch.dtype | None, autocast: torch.dtype | None) -> int:
    """Bytes of one micro-batch's forward and backward pass; gradients are there already, as from a micro-batch before."""
    model = model.to(parameters) if parameters is not None else model
    model.log = lambda *args, **kwargs: None
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def work() -> None:
        batch = [column[:samples].clone() for column in model.data.tensors]
        batch = [t.to(parameters) if parameters is not None and t.is_floating_point() else t for t in batch]
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            out = model.training_step(batch) if isinstance(model, Conv) else model.training_step(batch, 0)
        (out["loss"] if isinstance(out, dict) else out).backward()

    work()  # what libraries allocate once
    return allocated(work)
