"""The rate of each step is base x warmup x root of the batch ratio, with any scheduler, shown, and resumed to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD, lr_scheduler

from lightning_scale.callbacks import GradientAccumulation, LEGWWarmup
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError
from tests.toys import Net, Recorder, Vectors, trainer

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda o: None,
    "recursive": lambda o: lr_scheduler.ExponentialLR(o, 0.9),  # computes the next rate from the present one
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=30),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.LinearLR(o, 0.5, total_iters=4)]
    ),
}


def configure(name: str, lr: Any = 0.1) -> Callable[[L.LightningModule], Any]:
    def make(module: L.LightningModule) -> Any:
        layers = list(module.parameters())
        optimizer = SGD([{"params": layers[:2]}, {"params": layers[2:], "lr": 0.3}], lr=lr)
        scheduler = SCHEDULERS[name](optimizer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return make


def base_rates(name: str, steps: int) -> list[float]:
    """What the scheduler says on its own."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = SCHEDULERS[name](optimizer), []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return rates


def expected(name: str, steps: int, k: int, warmup: float) -> list[float]:
    return [rate * math.sqrt(k) * min(1, t / warmup) for t, rate in enumerate(base_rates(name, steps), 1)]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_composes_with_every_scheduler_without_compounding(tmp_path: Path, name: str) -> None:
    module = Net(configure(name))
    callbacks, logger = [LEGWWarmup(4, "4 steps"), GradientAccumulation(16)], Recorder(tmp_path)
    trainer(tmp_path, callbacks, max_steps=10, logger=logger, log_every_n_steps=1).fit(module, Vectors(4))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected(name, 10, 4, 4), rel=1e-12)
    # What is logged is the rate of the step, not what the scheduler says of the next one.
    assert list(logger.values("lr").values()) == pytest.approx(expected(name, 10, 4, 4), rel=1e-6)


def test_without_an_owner_the_batch_is_what_lightning_accumulates(tmp_path: Path) -> None:
    module = Net(configure("none"))
    trainer(tmp_path, [LEGWWarmup(4, "3 steps")], max_steps=6, accumulate_grad_batches=2).fit(module, Vectors(8))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 6, 4, 3), rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "steps"),
    [("2 epochs", 2 * 100 / 50), ("100 samples", 2), ("10%", 0.1 * 20 * 100 / 50), ("3 steps", 3)],
)
def test_warmups_in_every_unit(tmp_path: Path, warmup: str, steps: float) -> None:
    """100 samples an epoch; base batch 50, so 2 epochs at the base are 4 steps at every batch."""
    module = Net(configure("none"))
    trainer(tmp_path, [LEGWWarmup(50, warmup), GradientAccumulation(100)], max_epochs=20).fit(module, Vectors(4))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 20, 2, steps), rel=1e-12)


def test_an_epoch_is_what_the_sampler_takes(tmp_path: Path) -> None:
    data = Vectors()
    sampler = torch.utils.data.SubsetRandomSampler(range(20))
    loader = torch.utils.data.DataLoader(data.dataset, batch_size=4, sampler=sampler)
    module = Net(configure("none"))
    trainer(tmp_path, [LEGWWarmup(4, "1 epochs")], max_epochs=2).fit(module, loader)
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 10, 1, 5), rel=1e-12)


def test_a_share_is_of_what_will_be_trained(tmp_path: Path) -> None:
    module = Net(configure("none"))
    trainer(tmp_path, [LEGWWarmup(20, "40%")], max_steps=1000, max_epochs=1).fit(module, Vectors(20))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 5, 1, 2), rel=1e-12)


@pytest.mark.parametrize(("warmup", "steps"), [("40%", 0.4 * 12), ("1 epochs", 5)])
def test_a_share_is_of_every_pass_of_an_epoch(tmp_path: Path, warmup: str, steps: float) -> None:
    """2 epochs of 120 samples, each 1.2 passes over 100: 12 steps; an epoch of a warmup is one pass, 5 steps."""
    data, module = Vectors(), Net(configure("none"))
    sampler = ResumableBatchSampler(100, 20, epoch_samples=120)
    loader = torch.utils.data.DataLoader(data.dataset, batch_sampler=sampler)
    trainer(tmp_path, [LEGWWarmup(20, warmup), GradientAccumulation(20)], max_epochs=2).fit(module, loader)
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 12, 1, steps), rel=1e-12)


def test_it_follows_a_batch_that_lightning_changes(tmp_path: Path) -> None:
    module = Net(configure("none"))
    callbacks = [LEGWWarmup(20, "1 steps"), GradientAccumulationScheduler({0: 1, 1: 4})]
    trainer(tmp_path, callbacks, max_epochs=2).fit(module, Vectors(20))
    assert [lr for _, lr, _ in module.steps] == pytest.approx([0.1] * 5 + [0.2] * 2)


def test_manual_optimization_is_refused(tmp_path: Path) -> None:
    module = Net(configure("none"))
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match="LEGWWarmup needs automatic optimization"):
        trainer(tmp_path, [LEGWWarmup(20, "1 steps")], max_epochs=1).fit(module, Vectors(20))


def test_a_tensor_rate_is_written_in_place(tmp_path: Path) -> None:
    rate = torch.tensor(0.1)
    module = Net(configure("recursive", rate))
    trainer(tmp_path, [LEGWWarmup(4, "4 steps"), GradientAccumulation(16)], max_steps=6).fit(module, Vectors(4))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("recursive", 6, 4, 4), rel=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_shows_the_rate_that_is_used(tmp_path: Path, first: bool) -> None:
    module, logger = Net(configure("cosine")), Recorder(tmp_path)
    ours = [LEGWWarmup(4, "4 steps"), GradientAccumulation(16)]
    monitor = LearningRateMonitor("step")
    callbacks = [monitor, *ours] if first else [*ours, monitor]
    trainer(tmp_path, callbacks, max_steps=8, logger=logger, log_every_n_steps=1).fit(module, Vectors(4))
    shown = logger.values("lr-SGD/pg1")
    assert list(shown.values()) == pytest.approx([lr for _, lr, _ in module.steps], rel=1e-12)


class Save(L.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, fit: L.Trainer, *args: Any) -> None:
        if fit.global_step == self.step and not self.path.exists():
            fit.save_checkpoint(self.path)


@pytest.mark.parametrize("name", ["none", "recursive", "one_cycle"])
def test_a_resumed_run_has_the_same_bits_and_checkpoints_hold_the_base(tmp_path: Path, name: str) -> None:
    def run(ckpt: Path | None, save: Path) -> Net:
        L.seed_everything(0, verbose=False)
        module = Net(configure(name))
        callbacks = [Save(save, 5), LEGWWarmup(4, "4 steps"), GradientAccumulation(16)]
        trainer(tmp_path, callbacks, max_steps=10).fit(module, Vectors(4), ckpt_path=ckpt)
        return module

    whole = run(None, tmp_path / "saved.ckpt")
    rest = run(tmp_path / "saved.ckpt", tmp_path / "unused.ckpt")
    assert rest.steps == whole.steps[5:]
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    rate = saved["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rate == pytest.approx(base_rates(name, 6)[5], rel=1e-12)


def test_the_rate_is_the_base_again_after_training(tmp_path: Path) -> None:
    module = Net(configure("none"))
    fit = trainer(tmp_path, [LEGWWarmup(4, "4 steps"), GradientAccumulation(16)], max_steps=5)
    fit.fit(module, Vectors(4))
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == [0.1, 0.3]
    fit.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.1


def test_groups_keep_their_own_base(tmp_path: Path) -> None:
    seen = []

    class Both(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    trainer(tmp_path, [LEGWWarmup(4, "1 steps"), GradientAccumulation(16)], max_steps=2).fit(
        Both(configure("none")), Vectors(4)
    )
    assert seen[-1] == pytest.approx([0.2, 0.6], rel=1e-12)


def test_a_group_added_during_training_is_scaled_too(tmp_path: Path) -> None:
    seen = []

    class Growing(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 2 and len(self.optimizers().param_groups) == 2:
                self.optimizers().add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5})

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    trainer(tmp_path, [LEGWWarmup(1, "1 steps")], max_steps=5).fit(Growing(configure("none")), Vectors(4))
    assert seen[-1] == pytest.approx([0.2, 0.6, 1.0])


def test_overflowed_steps_count_for_the_warmup(tmp_path: Path) -> None:
    class Overflowing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if self.trainer.global_step == 1 else loss

    module = Overflowing(configure("none"))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer(tmp_path, [LEGWWarmup(4, "4 steps")], max_steps=5, plugins=[plugin]).fit(module, Vectors(4))
    assert [lr for _, lr, _ in module.steps] == pytest.approx(expected("none", 5, 1, 4), rel=1e-12)
    assert all(p.isfinite().all() for p in module.parameters())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        LEGWWarmup(512, "2000")
    with pytest.raises(ValueError, match="base_batch_size"):
        LEGWWarmup(0, "1 epochs")
