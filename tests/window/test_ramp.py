"""Every optimizer step is the mean gradient of exactly the samples that the schedule says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import lightning.pytorch as L
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_scale.callbacks import BatchSizeRamp, ExactResume, StepProgressBar, ValidateEvery
from lightning_scale.schedule import LinearRamp, StepSchedule
from tests.toys import Recorder, Tally, Weighted, indices, trainer
from tests.window.batches import check, exact_batches, resumable, rounded_batches, schedules


def items(size: int) -> Tensor:
    return torch.arange(size) % 5 + 1.0


@settings(max_examples=25, deadline=None)
@given(
    schedule=schedules(),
    micro=st.integers(1, 4),
    size=st.integers(12, 40),
    epochs=st.integers(1, 3),
    last_window=st.sampled_from(["step", "drop"]),
)
def test_a_resumable_loader_gives_every_size_exactly(
    schedule: StepSchedule, micro: int, size: int, epochs: int, last_window: Literal["step", "drop"]
) -> None:
    module = Tally(size)
    with TemporaryDirectory() as root:
        fit = trainer(Path(root), [BatchSizeRamp(schedule, last_window=last_window)], max_epochs=epochs)
        fit.fit(module, resumable(size, micro))
    steps = exact_batches(schedule, size, epochs, last_window)
    check(module.gradients, steps, torch.ones(size))
    assert fit.global_step == len(steps)


@settings(max_examples=25, deadline=None)
@given(
    schedule=schedules(least=4),
    micro=st.integers(1, 4),
    size=st.integers(13, 40),
    epochs=st.integers(1, 3),
    last_window=st.sampled_from(["step", "drop"]),
)
def test_another_loader_gives_the_nearest_multiple(
    schedule: StepSchedule, micro: int, size: int, epochs: int, last_window: Literal["step", "drop"]
) -> None:
    """Coprime sizes too; the last micro-batch of an epoch may be short."""
    assume(size // micro * micro >= 12 + micro)  # else a batch may be larger than an epoch
    module = Tally(size)
    with TemporaryDirectory() as root:
        trainer(Path(root), [BatchSizeRamp(schedule, last_window=last_window)], max_epochs=epochs).fit(
            module, indices(size, micro)
        )
    check(module.gradients, rounded_batches(schedule, size, micro, epochs, last_window), torch.ones(size))


@settings(max_examples=15, deadline=None)
@given(schedule=schedules(), micro=st.integers(1, 4), size=st.integers(12, 40))
def test_uneven_items_are_one_mean(schedule: StepSchedule, micro: int, size: int) -> None:
    module = Weighted(size)
    with TemporaryDirectory() as root:
        trainer(Path(root), [BatchSizeRamp(schedule)], max_epochs=2).fit(module, resumable(size, micro))
    check(module.gradients, exact_batches(schedule, size, 2, "step"), items(size), rtol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes(tmp_path: Path, workers: int) -> None:
    """Micro-batches that workers have prefetched are of the right size too."""
    schedule, module = StepSchedule("0:5 7:11 31:3 50:17"), Tally(41)
    trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=3).fit(module, resumable(41, 4, workers))
    check(module.gradients, exact_batches(schedule, 41, 3, "step"), torch.ones(41))


class Follow(L.Callback):
    """A ramp as it is written by hand: change Lightning's factor as soon as the schedule says so."""

    def __init__(self, schedule: StepSchedule) -> None:
        self.schedule, self.samples = schedule, 0

    def on_train_batch_start(self, fit: L.Trainer, *args: Any) -> None:
        fit.accumulate_grad_batches = self.schedule.batch_size(self.samples)
        self.samples += 1


@pytest.mark.parametrize("text", ["0:2 3:3", "0:3 6:2 9:4", "0:4", "0:1 1:5", "0:5 5:7 12:2"])
def test_lightnings_own_accumulation_fails_this_test(tmp_path: Path, text: str) -> None:
    """The same schedules, by its own factor and by its GradientAccumulationScheduler; micro-batches of one sample."""
    schedule = StepSchedule(text)
    steps = rounded_batches(schedule, 10, 1, 2, "step")
    module = Tally(10)
    trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=2).fit(module, indices(10, 1))
    check(module.gradients, steps, torch.ones(10))

    epoch_wise = {epoch: schedule.batch_size(epoch * 10) for epoch in range(2)}
    for callback in (Follow(schedule), GradientAccumulationScheduler(epoch_wise)):
        module = Tally(10)
        trainer(tmp_path, [callback], max_epochs=2).fit(module, indices(10, 1))
        with pytest.raises(AssertionError):
            check(module.gradients, steps, torch.ones(10))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision(tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}
    schedule, module = StepSchedule("0:3 6:7 20:5"), Tally(23)
    trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=2, **options).fit(module, resumable(23, 3))
    check(module.gradients, exact_batches(schedule, 23, 2, "step"), torch.ones(23))


def test_what_is_logged_is_what_was_taken(tmp_path: Path) -> None:
    schedule, logger, module = StepSchedule("0:5 9:8"), Recorder(tmp_path), Tally(21)
    fit = trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=2, logger=logger, log_every_n_steps=1)
    fit.fit(module, resumable(21, 3))
    sizes = [len(step) for step in exact_batches(schedule, 21, 2, "step")]
    assert sizes == [5, 5, 8, 3, 8, 8, 5]
    assert list(logger.values("batch_size").values()) == sizes
    assert list(logger.values("samples_consumed").values()) == [sum(sizes[: i + 1]) for i in range(len(sizes))]


def test_rounded_sizes_are_said_and_logged(tmp_path: Path) -> None:
    logger, module = Recorder(tmp_path), Tally(24)
    fit = trainer(tmp_path, [BatchSizeRamp("0:5 4:6 12:8")], max_epochs=1, logger=logger, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"2 of the 3 batch sizes .* rounded .*\(5 to 4, for example\)") as said:
        fit.fit(module, indices(24, 4))
    assert any("ResumableBatchSampler gives them exactly" in str(warning.message) for warning in said)
    assert list(logger.values("batch_size").values()) == [4, 8, 8, 4]


def test_samples_are_counted_beyond_what_float32_holds(tmp_path: Path) -> None:
    class Ahead(L.Callback):
        def on_train_start(self, fit: L.Trainer, module: L.LightningModule) -> None:
            next(c for c in fit.callbacks if type(c).__name__ == "LoopAdapter").progress.samples = 2**24

    logger, module = Recorder(tmp_path), Tally(8)
    fit = trainer(tmp_path, [BatchSizeRamp("0:1"), Ahead()], max_steps=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, indices(8, 1))
    assert list(logger.values("samples_consumed").values()) == [2**24 + 1]


class Asking(Tally):
    """Asks how many steps there will be, as schedulers do."""

    estimate = 0.0

    def configure_optimizers(self) -> Any:
        self.estimate = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


@pytest.mark.parametrize("make", [resumable, indices])
@pytest.mark.parametrize(
    "options", [{}, {"limit_train_batches": 5}, {"limit_train_batches": 0.5}, {"max_steps": 4}, {"max_epochs": 1}]
)
def test_schedulers_are_told_the_true_number_of_steps(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    module = Asking(40)
    ramp = BatchSizeRamp(LinearRamp(3, 12, "100 samples", 3))
    fit = trainer(tmp_path, [ramp], **{"max_epochs": 4, **options})
    fit.fit(module, make(40, 3))
    assert module.estimate == fit.global_step


class Validated(Tally):
    """Notes after which micro-batch of its epoch it validates."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.at: list[int] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.at.append(self.trainer.fit_loop.epoch_loop.batch_idx + 1)


def test_validation_by_parts_of_an_epoch_follows_its_length(tmp_path: Path) -> None:
    """Epochs of 25, 13 and 13 micro-batches: half of each."""
    module = Validated(25)
    fit = trainer(tmp_path, [BatchSizeRamp("0:1 25:4")], max_epochs=3, val_check_interval=0.5)
    fit.fit(module, resumable(25, 2), indices(2, 2))
    assert module.at == [12, 24, 6, 12, 6, 12]


class Numbers(IterableDataset[tuple[Tensor]]):
    """Samples whose number nobody knows beforehand."""

    def __iter__(self) -> Any:
        return iter([(torch.tensor(i),) for i in range(23)])


def test_an_iterable_data_set_of_unknown_length(tmp_path: Path) -> None:
    """Its last micro-batch is short; a stepwise scheduler that asks for the number of steps is told max_steps."""
    schedule, module = StepSchedule("0:8 16:4 30:12"), Asking(23)
    fit = trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=2, max_steps=50)
    fit.fit(module, DataLoader(Numbers(), batch_size=4))
    check(module.gradients, rounded_batches(schedule, 23, 4, 2, "step"), torch.ones(23))
    assert module.estimate == 50


@pytest.mark.parametrize(
    "options",
    [
        {"reload_dataloaders_every_n_epochs": 1},
        {"precision": "bf16-mixed"},
        {"gradient_clip_val": 100.0},
        {"num_sanity_val_steps": 2},
        {"enable_progress_bar": True},
        {"enable_progress_bar": True, "callbacks": [ExactResume(), ValidateEvery("3 steps"), StepProgressBar()]},
    ],
    ids=lambda options: " ".join(options),
)
def test_beside_other_settings(tmp_path: Path, options: dict[str, Any]) -> None:
    schedule, module = StepSchedule("0:3 6:7 20:5"), Validated(23)
    callbacks = [BatchSizeRamp(schedule), *options.pop("callbacks", [])]
    trainer(tmp_path, callbacks, max_epochs=2, **options).fit(module, resumable(23, 3), indices(4, 2))
    check(module.gradients, exact_batches(schedule, 23, 2, "step"), torch.ones(23))


def test_fast_dev_run(tmp_path: Path) -> None:
    module = Validated(23)
    callbacks = [BatchSizeRamp("0:9"), ExactResume(), ValidateEvery("3 steps")]
    trainer(tmp_path, callbacks, fast_dev_run=4).fit(module, resumable(23, 3), indices(4, 2))
    check(module.gradients, [list(range(9)), [9, 10, 11]], torch.ones(23))


def test_an_overflow_consumes_its_samples(tmp_path: Path) -> None:
    """The scaler leaves the step out; the next one takes the next samples."""

    class Overflowing(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (1e36 if self.trainer.global_step == 1 else 1.0)

    schedule, module = StepSchedule("0:3 6:7 20:5"), Overflowing(23)
    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))
    fit = trainer(tmp_path, [BatchSizeRamp(schedule)], max_epochs=1, plugins=[scaler])
    fit.fit(module, resumable(23, 3))
    steps = exact_batches(schedule, 23, 1, "step")
    assert fit.global_step == len(steps)
    assert not module.gradients[1].isfinite().all()
    check(
        [g for i, g in enumerate(module.gradients) if i != 1],
        [s for i, s in enumerate(steps) if i != 1],
        torch.ones(23),
    )
