"""Measure what the monitors cost: ``python -m benchmarks.monitors``. See `README.md` in this folder."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: its folder's parent is where the package is found, not its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure.environment import cpu_model
from examples.bert import BertPretraining
from lightning_scale.callbacks import GradientAccumulation, GradientNoiseScale, TrustRatioMonitor
from lightning_scale.monitoring import GradientNormHooks
from lightning_scale.optim import LAMB

VOCABULARY = 4096


class RandomTokens(Dataset[dict[str, Tensor]]):
    """Samples of random tokens, one in eight of them hidden."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(index)
        places = self._length // 8
        return {
            "input_ids": torch.randint(VOCABULARY, (self._length,), generator=draw),
            "positions": torch.randperm(self._length, generator=draw)[:places],
            "targets": torch.randint(VOCABULARY, (places,), generator=draw),
        }


class Bert(BertPretraining):
    """The example's model, with LAMB."""

    def configure_optimizers(self) -> Optimizer:
        return LAMB(self.named_parameters(), lr=1e-3)


HOOKS = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Clock:
    """Seconds that go into some functions, and into all: on a CPU those that this process computed, whatever else the
    machine does."""

    def __init__(self, device: torch.device) -> None:
        self.spent = 0.0
        self._device = device

    def now(self) -> float:
        """After all that the device has been given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def timed(self, owner: Any, name: str) -> None:
        """Count a method of an object or a class; no counted one calls another."""
        real = getattr(owner, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            try:
                return real(*args, **kwargs)
            finally:
                self.spent += self.now() - began

        setattr(owner, name, method)


class Whole(L.Callback):
    """The time of all steps but the first ones, and what of it the monitor took."""

    def __init__(self, clock: Clock) -> None:
        self.all = self.monitor = 0.0
        self._clock = clock

    def on_train_batch_start(self, fit: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if fit.global_step == WARM_UP and not self.all:
            self.all, self.monitor = -self._clock.now(), -self._clock.spent

    def on_train_end(self, fit: L.Trainer, module: L.LightningModule) -> None:
        self.all += self._clock.now()
        self.monitor += self._clock.spent


WARM_UP = 4


def step_and_look(monitor: L.Callback, given: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Seconds of a step, and those that the monitor takes at one that it looks at; every second step is one."""
    L.seed_everything(0, verbose=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device)
    for hook in HOOKS:
        if hook in vars(type(monitor)):
            clock.timed(monitor, hook)
    seen = GradientNormHooks._see
    clock.timed(GradientNormHooks, "_see")
    whole = Whole(clock)
    fit = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        callbacks=[whole, monitor, GradientAccumulation(given.batch)],
        logger=CSVLogger(folder),
        max_steps=given.steps + WARM_UP,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        fit.fit(
            Bert(given.size, vocab_size=VOCABULARY, dropout=0.0),
            DataLoader(RandomTokens(given.length), batch_size=given.micro_batch),
        )
    finally:
        GradientNormHooks._see = seen  # type: ignore[method-assign]
    return (whole.all - whole.monitor) / given.steps, whole.monitor / (given.steps // 2)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.monitors", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--size", default="demo", choices=["demo", "base", "large"], help="of the BERT (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="samples a step (%(default)s)")
    parser.add_argument("--micro-batch", type=int, default=64, help="samples a micro-batch (%(default)s)")
    parser.add_argument("--length", type=int, default=32, help="tokens a sample (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="half of which are looked at (%(default)s)")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    kinds: dict[str, tuple[Callable[[], L.Callback], int]] = {
        "TrustRatioMonitor": (lambda: TrustRatioMonitor(2, picture=False), 50),
        "GradientNoiseScale": (lambda: GradientNoiseScale(2, picture=False), 10),
    }
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model()
    print(f"BERT {given.size}, {given.batch} x {given.length} tokens in micro-batches of {given.micro_batch}; {where}")
    print("| monitor | a step, ms | a look, ms | every | share of a step |\n|---|---|---|---|---|")
    for name, (make, every) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            step, look = step_and_look(make(), given, Path(folder))
        share = look / every / step
        print(f"| {name} | {1e3 * step:.1f} | {1e3 * look:.2f} | {every} | {share:.2%} |", flush=True)


if __name__ == "__main__":
    main()
