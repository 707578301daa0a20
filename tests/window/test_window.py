"""Every optimizer step is the mean gradient of exactly the samples of its window."""

from __future__ import annotations

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

from lightning_scale.callbacks import GradientAccumulation
from lightning_scale.window.window import Window, micro_batches_for
from tests.toys import Tally, indices, trainer


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


class Weighted(Tally):
    """The loss is the mean over ``index % 5 + 1`` items a sample."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        (index,) = batch
        items = index % 5 + 1
        return {"loss": (self.weight[index] * items).sum() / items.sum(), "num_items": items.sum()}


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


class SaveAt(L.Callback):
    def __init__(self, path: Path, micro_batch: int) -> None:
        self.path, self.micro_batch = path, micro_batch
        self.existed: bool | None = None

    def on_train_batch_end(
        self, fit: L.Trainer, module: L.LightningModule, out: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.micro_batch:
            fit.save_checkpoint(self.path)
            self.existed = self.path.exists()


def test_a_checkpoint_inside_a_window_waits_for_its_end(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "inside.ckpt", 1)
    trainer(tmp_path, [saver, GradientAccumulation(4)], max_epochs=1).fit(Tally(8), indices(8, 1))
    assert saver.existed is False
    saved = torch.load(saver.path, weights_only=True)
    assert saved["global_step"] == 1
    assert saved["callbacks"]["LoopAdapter"]["samples"] == 4


class Boom(L.Callback):
    """Raises after one micro-batch."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_train_batch_end(
        self, fit: L.Trainer, module: L.LightningModule, out: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.micro_batch:
            raise RuntimeError("boom")


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


@pytest.mark.parametrize("micro_batch", [4, 5, 6])
def test_a_checkpoint_on_an_exception_lies_at_the_last_windows_end(tmp_path: Path, micro_batch: int) -> None:
    """Windows of 3 in 12 micro-batches of shuffled, resumable data: killed at micro-batch 4, 5 or 6 (from 0)."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from tests.toys import Net, Vectors

    def run(*more: L.Callback, ckpt: Path | None = None) -> Net:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
        fit = trainer(tmp_path, [GradientAccumulation(12), *more], max_steps=8, enable_checkpointing=True, logger=False)
        try:
            fit.fit(module, Vectors(4), ckpt_path=ckpt)
        except RuntimeError:
            assert more
        return module

    whole = run()
    run(ModelCheckpoint(tmp_path / "saved", save_on_exception=True, filename="{step}"), Boom(micro_batch))
    (saved,) = (tmp_path / "saved").glob("*.ckpt")
    done = (micro_batch + 1) // 3
    assert torch.load(saved, weights_only=False)["global_step"] == done
    rest = run(ckpt=saved)
    assert rest.steps == whole.steps[done:]
    assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))


def test_stopping_early_inside_a_window_can_be_resumed(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, fit: L.Trainer, module: Any, out: Any, batch: Any, batch_idx: int) -> None:
            fit.should_stop = batch_idx == 5

    from tests.toys import Net, Vectors

    def run(*more: L.Callback, ckpt: Path | None = None) -> tuple[Net, L.Trainer]:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
        fit = trainer(tmp_path, [GradientAccumulation(16), *more], max_steps=5)
        fit.fit(module, Vectors(4), ckpt_path=ckpt)
        return module, fit

    whole, _ = run()
    _, stopped = run(Stop())
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    rest, _ = run(ckpt=tmp_path / "stopped.ckpt")
    assert rest.steps == whole.steps[1:]


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


@given(batch=st.integers(1, 200), micro=st.integers(1, 9), world=st.integers(1, 9))
def test_micro_batches_hold_exactly_the_batch(batch: int, micro: int, world: int) -> None:
    if batch % (micro * world) == 0:
        assert micro_batches_for(batch, micro, world) * micro * world == batch
        return
    with pytest.raises(ValueError, match="write batch_size") as error:
        micro_batches_for(batch, micro, world)
    fits = [size for size in range(1, 400) if size % (micro * world) == 0]
    nearest = {max([s for s in fits if s < batch], default=None), min(s for s in fits if s > batch)} - {None}
    named = str(error.value).split("write batch_size ")[1].split(",")[0].split(" or ")
    assert {int(size) for size in named} == nearest


def test_a_window_closes_when_full_or_at_an_epochs_end() -> None:
    window = Window(batch_size=4, micro_batches=2, seen=1)
    assert not window.closes(epoch_ends=False, last_window="step")
    assert window.closes(epoch_ends=True, last_window="step")
    assert not window.closes(epoch_ends=True, last_window="drop")
    window.seen = 2
    assert window.closes(epoch_ends=False, last_window="drop")
