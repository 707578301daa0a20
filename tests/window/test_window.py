"""Every optimizer step is the mean gradient of exactly the samples of its window."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.window.window import Window
from tests.toys import Boom, Net, Tally, Vectors, Weighted, indices, trainer


def windows(size: int, micro: int, batch: int, epochs: int, last_window: str) -> list[list[list[int]]]:
    """Each step's micro-batches, by hand: unshuffled epochs cut into batches."""
    steps = []
    for _ in range(epochs):
        micros = [list(range(start, min(start + micro, size))) for start in range(0, size, micro)]
        for start in range(0, len(micros), batch // micro):
            window = micros[start : start + batch // micro]
            if len(window) == batch // micro or last_window == "step":
                steps.append(window)
    return steps


def mean_gradient(window: list[list[int]], size: int) -> Tensor:
    """The mean over all samples, in float64."""
    gradient = torch.zeros(size, dtype=torch.float64)
    samples = [index for micro in window for index in micro]
    gradient[samples] = 1 / len(samples)
    return gradient


def check(gradients: list[Tensor], steps: list[list[list[int]]], size: int) -> None:
    assert len(gradients) == len(steps)
    for gradient, window in zip(gradients, steps, strict=True):
        torch.testing.assert_close(gradient.double(), mean_gradient(window, size), rtol=2e-7, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    micro=st.integers(1, 4),
    factor=st.integers(1, 5),
    size=st.integers(1, 30),
    epochs=st.integers(1, 3),
    last_window=st.sampled_from(["step", "drop"]),
)
def test_each_step_is_the_mean_of_its_window(micro: int, factor: int, size: int, epochs: int, last_window: Any) -> None:
    """Also where an epoch's last micro-batch is short."""
    assume(windows(size, micro, micro * factor, 1, last_window))
    module = Tally(size)
    with TemporaryDirectory() as root:
        fit = trainer(Path(root), [GradientAccumulation(micro * factor, last_window)], max_epochs=epochs)
        fit.fit(module, indices(size, micro))
    steps = windows(size, micro, micro * factor, epochs, last_window)
    check(module.gradients, steps, size)
    assert fit.global_step == len(steps)


def test_lightnings_own_accumulation_fails_this_test(tmp_path: Path) -> None:
    module = Tally(10)
    trainer(tmp_path, [], max_epochs=1, accumulate_grad_batches=4).fit(module, indices(10, 1))
    with pytest.raises(AssertionError):
        check(module.gradients, windows(10, 1, 4, 1, "step"), 10)  # its last window is divided by 4, not by 2


def test_gradients_do_not_leak_from_a_dropped_window(tmp_path: Path) -> None:
    module = Tally(5)
    trainer(tmp_path, [GradientAccumulation(2, "drop")], max_epochs=2).fit(module, indices(5, 1))
    check(module.gradients, windows(5, 1, 2, 2, "drop"), 5)
    assert all(gradient[4] == 0 for gradient in module.gradients)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_limited_epochs(tmp_path: Path, workers: int) -> None:
    module = Tally(20)
    fit = trainer(tmp_path, [GradientAccumulation(4)], max_epochs=2, limit_train_batches=7)
    fit.fit(module, indices(20, 1, num_workers=workers))
    check(module.gradients, windows(7, 1, 4, 2, "step"), 20)


def test_a_training_step_that_returns_none_does_not_count(tmp_path: Path) -> None:
    class Skipping(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if batch_idx % 4 == 1 else super().training_step(batch, batch_idx)

    module = Skipping(8)
    trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1).fit(module, indices(8, 1))
    check(module.gradients, [[[0], [2], [3]], [[4], [6], [7]]], 8)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision(tmp_path: Path, precision: str) -> None:
    plugins: list[Any] = []
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        plugins, options = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))], {}
    module = Tally(11)
    fit = trainer(tmp_path, [GradientAccumulation(6)], max_epochs=1, plugins=plugins, **options)
    fit.fit(module, indices(11, 2))
    check(module.gradients, windows(11, 2, 6, 1, "step"), 11)


def test_clipping_sees_the_mean(tmp_path: Path) -> None:
    class Clipped(Tally):
        def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(*args, **kwargs)
            self.gradients.append(self.weight.grad.clone())  # type: ignore[union-attr]

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            pass

    module = Clipped(8)
    fit = trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1, gradient_clip_val=0.25)
    fit.fit(module, indices(8, 1))
    for gradient, window in zip(module.gradients, windows(8, 1, 4, 1, "step"), strict=True):
        mean = mean_gradient(window, 8)  # norm 0.5
        torch.testing.assert_close(gradient.double(), mean * 0.25 / mean.norm(), rtol=1e-5, atol=0)


@settings(max_examples=15, deadline=None)
@given(micro=st.integers(1, 4), factor=st.integers(1, 5), size=st.integers(1, 30))
def test_uneven_items_are_one_mean(micro: int, factor: int, size: int) -> None:
    module = Weighted(size)
    with TemporaryDirectory() as root:
        trainer(Path(root), [GradientAccumulation(micro * factor)], max_epochs=1).fit(module, indices(size, micro))
    steps = windows(size, micro, micro * factor, 1, "step")
    assert len(module.gradients) == len(steps)
    for gradient, window in zip(module.gradients, steps, strict=True):
        items = torch.zeros(size, dtype=torch.float64)
        for index in (i for part in window for i in part):
            items[index] = index % 5 + 1
        torch.testing.assert_close(gradient.double(), items / items.sum(), rtol=4e-7, atol=0)


def test_items_counted_on_an_accelerator_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients from 0-d tensors as from numbers."""
    monkeypatch.setattr("lightning_scale.window.mean_gradient._on_accelerator", lambda tensor: True)
    module, expected = Weighted(23), Weighted(23)
    trainer(tmp_path, [GradientAccumulation(6)], max_epochs=1).fit(module, indices(23, 2))
    monkeypatch.undo()
    trainer(tmp_path, [GradientAccumulation(6)], max_epochs=1).fit(expected, indices(23, 2))
    for ours, theirs in zip(module.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=0)


def test_a_window_without_items_moves_nothing(tmp_path: Path) -> None:
    class Empty(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return {"loss": self.weight[batch[0]].sum() * 0.0, "num_items": 0}

    module = Empty(4)
    trainer(tmp_path, [GradientAccumulation(2)], max_epochs=1).fit(module, indices(4, 1))
    assert [float(g.abs().sum()) for g in module.gradients] == [0.0, 0.0]
    assert module.weight.isfinite().all()


def test_validation_inside_a_window_leaves_it_whole(tmp_path: Path) -> None:
    class Validated(Tally):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val", self.weight.sum())

    module = Validated(12)
    fit = trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1, val_check_interval=3)
    fit.fit(module, indices(12, 1), indices(4, 2))
    check(module.gradients, windows(12, 1, 4, 1, "step"), 12)


def test_every_sample_of_the_endless_order_is_trained_once(tmp_path: Path) -> None:
    """Epochs limited to 3 of 10 micro-batches go on where the last one stopped."""
    size, seen = 40, []

    class Look(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            seen.extend(batch[0].tolist())
            return super().training_step(batch, batch_idx)

    sampler = ResumableBatchSampler(size, 4, seed=5)
    loader = DataLoader(TensorDataset(torch.arange(size)), batch_sampler=sampler)
    fit = trainer(tmp_path, [GradientAccumulation(12)], max_epochs=7, limit_train_batches=3)
    fit.fit(Look(size), loader)
    order = list(chain.from_iterable(ResumableBatchSampler(size, 4, seed=5, epoch_samples=84, rank=0, world_size=1)))
    assert seen == order


def test_a_validation_loader_is_left_as_it_is(tmp_path: Path) -> None:
    counts = []

    class Counted(Tally):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            counts.append(len(batch[0]))

    loader = DataLoader(TensorDataset(torch.arange(12)), batch_sampler=ResumableBatchSampler(12, 4))
    fit = trainer(tmp_path, [GradientAccumulation(4)], max_epochs=2, val_check_interval=2)
    fit.fit(Counted(8), indices(8, 2), loader)
    assert counts == [4] * 3 * 4


def test_an_epoch_that_a_module_cuts_short_leaves_nothing_behind(tmp_path: Path) -> None:
    class Cut(Tally):
        def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> int | None:
            return -1 if batch_idx == 5 else None

    module = Cut(12)
    trainer(tmp_path, [GradientAccumulation(4)], max_epochs=2).fit(module, indices(12, 1))
    whole = [window for window in windows(12, 1, 4, 1, "drop")[:1] for _ in range(2)]
    assert [int((g > 0).sum()) for g in module.gradients] == [4, 4]
    check(module.gradients, whole, 12)


def test_schedulers_are_told_the_true_number_of_steps(tmp_path: Path) -> None:
    def one_cycle(module: L.LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        steps = module.trainer.estimated_stepping_batches
        estimates.append(steps)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    estimates: list[float] = []
    module = Net(one_cycle)
    fit = trainer(tmp_path, [GradientAccumulation(20)], max_epochs=2)
    fit.fit(module, Vectors(4))
    assert estimates == [10]
    assert fit.global_step == 10
    assert module.steps[-1][1] == pytest.approx(4e-6, rel=0.01)  # OneCycleLR's last rate
    assert type(fit) is L.Trainer


def test_an_exception_leaves_module_and_trainer_as_they_were(tmp_path: Path) -> None:
    module = Tally(8)
    fit = trainer(tmp_path, [GradientAccumulation(4), Boom(1)], max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        fit.fit(module, indices(8, 1))
    assert "optimizer_zero_grad" not in vars(module)
    module.gradients.clear()
    trainer(tmp_path, [], max_epochs=1).fit(module, indices(8, 1))  # a plain run after it zeroes its gradients
    check(module.gradients, windows(8, 1, 1, 1, "step"), 8)


def test_a_fit_that_raised_can_be_fit_again(tmp_path: Path) -> None:
    boom = Boom(1)
    fit = trainer(tmp_path, [GradientAccumulation(4), boom], max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        fit.fit(Tally(8), indices(8, 1))
    boom.micro_batch = -1
    module = Tally(8)
    fit.fit(module, indices(8, 1))
    check(module.gradients, windows(8, 1, 4, 1, "step"), 8)


def test_a_closure_called_twice_counts_once(tmp_path: Path) -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            with torch.enable_grad():
                closure()
            return super().step(closure)

    module = Tally(3, lambda parameters: Twice(parameters, lr=1.0))
    seen = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, fit: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            seen.append(module.weight.grad.clone())  # type: ignore[union-attr]

    trainer(tmp_path, [GradientAccumulation(1), Look()], max_epochs=1).fit(module, indices(3, 1))
    for i, gradient in enumerate(seen):
        assert gradient.sum() == 1, i


def test_the_loop_is_put_back_after_training(tmp_path: Path) -> None:
    module, fit = Tally(8), trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1)
    fit.fit(module, indices(8, 1))
    assert "_should_accumulate" not in vars(fit.fit_loop.epoch_loop)
    assert "optimizer_zero_grad" not in vars(module)
    assert "save_checkpoint" not in vars(fit)


def test_a_window_closes_when_full_or_at_an_epochs_end() -> None:
    window = Window(batch_size=4, micro_batches=2, seen=1)
    assert not window.closes(epoch_ends=False, last_window="step")
    assert window.closes(epoch_ends=True, last_window="step")
    assert not window.closes(epoch_ends=True, last_window="drop")
    window.seen = 2
    assert window.closes(epoch_ends=False, last_window="drop")
