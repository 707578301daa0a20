"""Hooks and attributes that speak of steps or batches: under the window they are what Lightning's own accumulation has.

The table is in docs/batches.md, "What your code sees".
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, SequenceLengthStages
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.schedule import Stage
from tests.toys import Vectors, indices, trainer

HOOKS = [name for name in vars(L.Callback) if name.startswith("on_") and "checkpoint" not in name]
ONCE_A_STEP = ("on_before_zero_grad", "optimizer_zero_grad", "on_before_optimizer_step", "configure_gradient_clipping")
Event = tuple[Any, ...]


def seen(trainer: L.Trainer) -> Event:
    """What is public of the Trainer's counts."""
    known = trainer.train_dataloader is not None
    return (
        trainer.global_step,
        trainer.current_epoch,
        trainer.is_last_batch,
        trainer.num_training_batches,
        trainer.fit_loop.batch_idx if known else None,
        trainer.fit_loop.total_batch_idx if known else None,
        trainer.accumulate_grad_batches,
        trainer.estimated_stepping_batches if known else None,
        trainer.max_steps,
        trainer.received_sigterm,
    )


class Watching(L.Callback):
    def __init__(self, events: list[Event]) -> None:
        for name in HOOKS:
            setattr(self, name, self._note(name, events))

    @staticmethod
    def _note(name: str, events: list[Event]) -> Callable[..., None]:
        return lambda trainer, *args, **kwargs: events.append((f"callback.{name}", *seen(trainer)))


class Watched(L.LightningModule):
    """Notes every hook of its own, and averages its weight in ``on_before_zero_grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.events: list[Event] = []
        self.average = 0.0

    def note(self, name: str) -> None:
        self.events.append((f"module.{name}", *seen(self.trainer)))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.average = 0.9 * self.average + 0.1 * float(self.weight.detach())
        self.note("on_before_zero_grad")

    def optimizer_zero_grad(self, *args: Any) -> None:
        super().optimizer_zero_grad(*args)
        self.note("optimizer_zero_grad")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.note("optimizer_step")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.note("on_before_optimizer_step")

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        self.note("configure_gradient_clipping")

    def lr_scheduler_step(self, *args: Any) -> None:
        super().lr_scheduler_step(*args)
        self.note("lr_scheduler_step")

    def on_train_batch_start(self, *args: Any) -> None:
        self.note("on_train_batch_start")

    def on_train_batch_end(self, *args: Any) -> None:
        self.note("on_train_batch_end")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.note("training_step")
        return (self.weight * (batch[0] + 1.0)).mean()

    def on_after_backward(self) -> None:
        self.note("on_after_backward")

    def configure_optimizers(self) -> Any:
        self.steps = self.trainer.estimated_stepping_batches
        self.accumulated = self.trainer.accumulate_grad_batches
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 1 / (1 + step)), "interval": "step"}]


def run(tmp_path: Path, callbacks: list[Any], loader: Any, **options: Any) -> Watched:
    module = Watched()
    watching = Watching(module.events)
    trainer(tmp_path, [*callbacks, watching], max_epochs=2, **options).fit(module, loader)
    return module


@pytest.mark.parametrize("size", [64, 56], ids=["whole windows", "a short one at the end"])
def test_hooks_and_counts_are_those_of_lightnings_accumulation(tmp_path: Path, size: int) -> None:
    """The same hooks in the same order, and at each of them the same numbers."""
    ours = run(tmp_path, [GradientAccumulation(16)], indices(size, 4))
    lightnings = run(tmp_path, [], indices(size, 4), accumulate_grad_batches=4)
    assert ours.events == lightnings.events
    assert (ours.steps, ours.accumulated) == (lightnings.steps, lightnings.accumulated) == (8, 4)
    if size == 64:
        assert ours.average == pytest.approx(lightnings.average, rel=1e-6)
    count = Counter(event[0].rpartition(".")[2] for event in ours.events if event[0].startswith("module."))
    assert {name: count[name] for name in ONCE_A_STEP} == dict.fromkeys(ONCE_A_STEP, 8)


def test_a_resumable_loader(tmp_path: Path) -> None:
    sampler = ResumableBatchSampler(96, micro_batch_size=6, shuffle=False)
    loader = DataLoader(indices(96, 1).dataset, batch_sampler=sampler)
    module = run(tmp_path, [GradientAccumulation(24)], loader)
    assert (module.steps, module.accumulated) == (8, 4)
    assert Counter(event[0] for event in module.events)["module.on_before_zero_grad"] == 8


def test_a_first_micro_batch_without_a_loss(tmp_path: Path) -> None:
    class Absent(Watched):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if batch_idx % 4 == 0 else super().training_step(batch, batch_idx)

    module = Absent()
    trainer(tmp_path, [GradientAccumulation(16)], max_epochs=2).fit(module, indices(64, 4))
    assert Counter(event[0] for event in module.events)["module.on_before_zero_grad"] == 8


def test_batches_of_several_sizes(tmp_path: Path) -> None:
    """The present step's number, and a warning that says what to read; none for Lightning's own reading."""
    ramp = BatchSizeRamp("0:4 16:8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = run(tmp_path, [ramp], indices(64, 4))
    assert any("read trainer.estimated_stepping_batches" in str(w.message) for w in caught)
    counts = {event[7] for event in module.events if event[0] == "module.training_step"}
    assert counts == {1, 2}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, [ramp], max_epochs=1).fit(Plain(), indices(64, 4))
    assert not any("accumulate_grad_batches" in str(w.message) for w in caught)


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.weight * batch[0]).mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def test_losses_are_the_micro_batches_own(tmp_path: Path) -> None:
    class Losses(L.Callback):
        seen: ClassVar[list[float]] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
            self.seen.append(float(outputs["loss"]))

    class Constant(Plain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.weight.sum() * 0 + 3.0

    losses = Losses()
    trainer(tmp_path, [GradientAccumulation(16), losses], max_epochs=1).fit(Constant(), indices(64, 4))
    assert losses.seen == [3.0] * 16


def test_what_others_set_is_not_used(tmp_path: Path) -> None:
    class Sets(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.accumulate_grad_batches = 2

    module = Watched()
    fit = trainer(tmp_path, [GradientAccumulation(16), Sets()], max_epochs=1)
    with pytest.warns(UserWarning, match=r"accumulate_grad_batches was set to 2, which is not used"):
        fit.fit(module, indices(64, 4))
    assert fit.global_step == 4 and fit.accumulate_grad_batches == 2  # the Trainer's own again, outside of fit


def test_a_loader_that_asks_itself(tmp_path: Path) -> None:
    """The Trainer's own number: which other there will be depends on the loader."""

    class Asks(Watched):
        def train_dataloader(self) -> Any:
            self.asked = self.trainer.accumulate_grad_batches
            return indices(64, 4)

    module = Asks()
    trainer(tmp_path, [GradientAccumulation(16)], max_epochs=1).fit(module)
    assert (module.asked, module.accumulated) == (1, 4)


def test_stages_of_one_number(tmp_path: Path) -> None:
    """Both stages take two micro-batches a step, of different sizes."""
    stages = [
        Stage(sequence_length=4, steps=3, batch_size=8, micro_batch_size=4),
        Stage(sequence_length=8, steps=3, batch_size=4, micro_batch_size=2),
    ]

    class Asks(L.Callback):
        counts: ClassVar[set[int]] = set()

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            self.counts.add(trainer.accumulate_grad_batches)

    asks = Asks()
    fit = trainer(tmp_path, [SequenceLengthStages(stages), asks])
    fit.fit(Plain(), datamodule=Vectors(64))
    assert asks.counts == {2}
