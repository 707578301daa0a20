"""A resumed run draws the random numbers, takes the samples and ends with the bits of the uninterrupted run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_scale.callbacks import BatchSizeRamp, ExactResume, GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.window.random_streams import RandomState, RandomStreams
from tests.toys import Net, SaveAt, Tally, Vectors, indices, trainer


class Noisy(Net):
    """Dropout, and draws of Python's and NumPy's generators; validation draws too."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + random.random() + np.random.rand())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        random.random(), np.random.rand(), torch.rand(3)
        super().validation_step(batch, batch_idx)


class Draws(L.Callback):
    """Draws random numbers between steps."""

    def on_train_batch_end(self, *args: Any) -> None:
        torch.rand(1), random.random(), np.random.rand()


def run(
    root: Path, *more: L.Callback, ckpt: Path | None = None, data: Any = None, exact: bool = True, **options: Any
) -> Noisy:
    L.seed_everything(0, verbose=False)
    module = Noisy(lambda m: torch.optim.Adam(m.parameters(), lr=0.01), dropout=0.3)
    callbacks = [BatchSizeRamp("0:8 24:13 60:9"), *([ExactResume()] if exact else []), *more]
    trainer(root, callbacks, **{"max_steps": 14, "val_check_interval": 10, **options}).fit(
        module, data or Vectors(4), ckpt_path=ckpt
    )
    return module


def same(a: Noisy, b: Noisy) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_resume_after_any_micro_batch_has_the_same_bits(tmp_path: Path) -> None:
    """Batches of 2 to 4 micro-batches; also inside a window and an epoch, beside validations and at an epoch's end."""
    whole = run(tmp_path)
    for micro_batch in (0, 1, 2, 5, 8, 9, 10, 13, 19, 20, 22, 25, 26, 27, 28, 29, 33):
        path = tmp_path / f"{micro_batch}.ckpt"
        run(tmp_path, SaveAt(path, micro_batch))
        done = torch.load(path, weights_only=True)["global_step"]
        rest = run(tmp_path, ckpt=path)
        assert rest.steps == whole.steps[done:], micro_batch
        assert same(rest, whole), micro_batch


class LoadsLate(SingleDeviceStrategy):
    """As strategies do that shard parameters: Lightning then loads after ``on_fit_start``."""

    restore_checkpoint_after_setup = True


def test_a_strategy_that_loads_late(tmp_path: Path) -> None:
    path = tmp_path / "9.ckpt"
    whole = run(tmp_path, SaveAt(path, 9), strategy=LoadsLate("cpu"))
    rest = run(tmp_path, ckpt=path, strategy=LoadsLate("cpu"))
    assert 0 < len(rest.steps) < len(whole.steps)
    assert same(rest, whole)


def test_without_it_the_bits_differ(tmp_path: Path) -> None:
    whole = run(tmp_path, exact=False)
    run(tmp_path, SaveAt(tmp_path / "9.ckpt", 9), exact=False)
    assert not same(run(tmp_path, ckpt=tmp_path / "9.ckpt", exact=False), whole)


def test_what_runs_between_steps_does_not_matter(tmp_path: Path) -> None:
    """Other validations, and callbacks that draw."""
    whole = run(tmp_path)
    assert same(run(tmp_path, Draws(), val_check_interval=3), whole)
    assert same(run(tmp_path, limit_val_batches=0), whole)


def test_draws_between_steps_go_on(tmp_path: Path) -> None:
    """The outside stream is a stream: it neither stands still nor repeats the training stream."""
    outside: list[float] = []
    inside: list[float] = []

    class Draw(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            outside.append(random.random())

    class Steps(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            inside.append(random.random())
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, [ExactResume(), Draw()], max_epochs=1).fit(Steps(9), indices(9, 1))
    assert len(set(outside + inside)) == 18


class Augmented(Dataset[tuple[Tensor]]):
    """Draws in the main process, as a data set without workers may."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (torch.full((8,), index / 60) + torch.rand(8) + random.random(),)


def test_a_data_set_that_draws(tmp_path: Path) -> None:
    def data() -> Any:
        return DataLoader(Augmented(), batch_sampler=ResumableBatchSampler(60, 4))

    whole = run(tmp_path, data=data(), val_check_interval=1.0)
    for micro_batch in (6, 7, 15):
        path = tmp_path / f"{micro_batch}.ckpt"
        run(tmp_path, SaveAt(path, micro_batch), data=data(), val_check_interval=1.0)
        assert same(run(tmp_path, data=data(), ckpt=path, val_check_interval=1.0), whole), micro_batch


class SaveEnd(L.Callback):
    """Saves at the first epoch's end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, fit: L.Trainer, *args: Any) -> None:
        if fit.current_epoch == 0:
            fit.save_checkpoint(self.path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_shuffling_loader_resumes_at_an_epochs_end(tmp_path: Path, workers: int) -> None:
    dataset = TensorDataset(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)))

    def data() -> Any:
        return DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)

    options: dict[str, Any] = {"max_steps": -1, "max_epochs": 3, "val_check_interval": 1.0}
    with pytest.warns(UserWarning, match="ExactResume: the DataLoader cannot continue inside an epoch"):
        whole = run(tmp_path, data=data(), **options)
    run(tmp_path, SaveEnd(tmp_path / "end.ckpt"), data=data(), **options)
    assert same(run(tmp_path, data=data(), ckpt=tmp_path / "end.ckpt", **options), whole)


def test_a_loader_that_begins_anew_is_named(tmp_path: Path) -> None:
    data = indices(20, 2)

    def fit(ckpt: Path | None = None, *more: L.Callback) -> None:
        callbacks = [GradientAccumulation(4), *more]
        trainer(tmp_path, callbacks, max_epochs=1).fit(Tally(20), data, ckpt_path=ckpt)

    fit(None, SaveAt(tmp_path / "4.ckpt", 3))
    with pytest.warns(UserWarning, match="begins that epoch anew.*ResumableBatchSampler"):
        fit(tmp_path / "4.ckpt")


def test_a_checkpoint_made_after_training_holds_the_state(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    whole = run(tmp_path)
    L.seed_everything(0, verbose=False)
    module = Noisy(lambda m: torch.optim.Adam(m.parameters(), lr=0.01), dropout=0.3)
    fit = trainer(tmp_path, [BatchSizeRamp("0:8 24:13 60:9"), ExactResume()], max_steps=9, val_check_interval=10)
    fit.fit(module, Vectors(4))
    fit.save_checkpoint(tmp_path / "after.ckpt")
    assert same(run(tmp_path, ckpt=tmp_path / "after.ckpt"), whole)


def test_states_survive_a_checkpoint_and_outside_draws_differ() -> None:
    device = torch.device("cpu")
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    state = RandomState.capture(device)
    again = RandomState.from_state_dict(state.state_dict())
    assert again == state

    def draw() -> tuple[float, ...]:
        return float(torch.rand(1)), random.random(), float(np.random.rand()), float(np.random.standard_normal())

    first = draw()
    assert RandomState.capture(device) != state
    again.restore(device)
    assert draw() == first
    again.restore(device)
    RandomStreams(device)
    assert not set(draw()) & set(first)


def test_a_loader_that_goes_on_is_not_warned_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run(tmp_path, SaveAt(tmp_path / "5.ckpt", 5))
    run(tmp_path, ckpt=tmp_path / "5.ckpt")
    assert not [w for w in recwarn if "resum" in str(w.message) or "continue inside" in str(w.message)]
