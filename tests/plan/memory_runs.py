"""What really lies in memory at an optimizer step, counted over every tensor of the process."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale import optim
from lightning_scale.strategies import FSDP2Strategy
from tests.distributed.meshes import FSDP2
from tests.toys import trainer

WIDTH, LAYERS, BUCKET = 320, 10, 123_457
SHAPES = tuple(shape for _ in range(LAYERS) for shape in ((WIDTH, WIDTH), (WIDTH,)))


class Deep(L.LightningModule):
    """Ten layers, each just larger than what ZeRO-3 leaves whole."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layers: nn.ModuleList | None = None
        self._make = make

    def configure_model(self) -> None:
        if self.layers is None:
            self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = batch[0]
        assert self.layers is not None
        for layer in self.layers:
            hidden = layer(hidden).relu()
        return hidden.float().square().mean()

    def configure_optimizers(self) -> Any:
        return self._make(list(self.named_parameters()))


class Count(L.Callback):
    """Bytes of all storages that have come since, at a step after the state was made."""

    def __init__(self) -> None:
        self.before = {key for key, _ in _storages()}
        self.bytes = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            found = {key: size for key, size in _storages() if key not in self.before}
            self.bytes = sum(size for size in found.values() if size not in (2 * BUCKET, 4 * BUCKET))


def _storages() -> list[tuple[int, int]]:
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), Tensor) or issubclass(type(thing), FakeTensor):
            continue  # fake ones: what a compiler has left
        try:
            gradient = thing.grad if thing.is_leaf else None
        except RuntimeError:  # torch 2.6 leaves undefined tensors, without memory
            continue
        for tensor in (thing, gradient):
            own = getattr(tensor, "_local_tensor", tensor)
            if own is not None and own.device.type == "cpu":
                storage = own.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return [(key, size) for key, size in found.items() if key]


MAKERS: dict[str, Any] = {
    "LAMB": lambda named: optim.LAMB(named, lr=1e-3),
    "LAMB, master": lambda named: optim.LAMB(named, lr=1e-3, master_weights=True),
    "LAMB8bit": lambda named: optim.LAMB8bit(named, lr=1e-3),
    "LARS": lambda named: optim.LARS(named, lr=1e-3),
    "AdamW": lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-3),
}


def counted(folder: Path, strategy: Any, optimizer: str, precision: str, devices: int) -> int:
    """Bytes on this rank."""
    data = DataLoader(TensorDataset(torch.randn(32, WIDTH)), batch_size=4)
    count = Count()
    options: dict[str, Any] = {"strategy": strategy} if strategy is not None else {}
    fit = trainer(folder, [count], max_steps=3, precision=precision, devices=devices, **options)
    fit.fit(Deep(MAKERS[optimizer]), data)
    return count.bytes


SHARDED = [
    (name, optimizer, precision)
    for name in ("ddp", *(["fsdp2"] if FSDP2 else []))
    for optimizer, precision in (("LAMB", "32-true"), ("LAMB8bit", "32-true"), ("LAMB, master", "bf16-true"))
]
ZERO = [
    (f"zero{stage}{offload}", "LAMB", precision)
    for stage in (1, 2, 3)
    for offload in ("", "_offload")
    for precision in ("32-true", "bf16-mixed")
]


def sharded(folder: Path) -> dict[str, int]:
    made = {"ddp": lambda: DDPStrategy(gradient_as_bucket_view=True), "fsdp2": FSDP2Strategy}
    return {"/".join(case): counted(folder, made[case[0]](), case[1], case[2], 2) for case in SHARDED}


def zero(folder: Path) -> dict[str, int]:
    from lightning_scale.strategies import ZeROStrategy

    found = {}
    for case in ZERO:
        stage, offload = int(case[0][4]), "cpu" if case[0].endswith("offload") else None
        options: dict[str, Any] = {
            "offload_optimizer": offload,
            "config": {"zero_optimization": {"reduce_bucket_size": BUCKET}},
        }
        if stage == 3:
            options["offload_parameters"] = offload
        found["/".join(case)] = counted(folder, ZeROStrategy(stage=stage, **options), case[1], case[2], 2)
    return found
