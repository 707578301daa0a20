"""Loaders that filter, stop early or hide how many samples they give: the mean stays true, or there is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation
from lightning_scale.data import ResumableBatchSampler
from lightning_scale.errors import ConfigurationError
from tests.toys import Recorder, Tally, indices, trainer
from tests.window.batches import check, resumable


def loader_of(size: int, micro: int, exact: bool, collate: Any) -> DataLoader[Any]:
    dataset = list(range(size))
    if exact:
        sampler = ResumableBatchSampler(size, micro, shuffle=False)
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    return DataLoader(dataset, batch_size=micro, collate_fn=collate)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
def test_a_collate_fn_that_filters(tmp_path: Path, exact: bool) -> None:
    """A micro-batch counts by what arrived; the batch size by what was asked for."""
    module, logger = Tally(12), Recorder(tmp_path)
    loader = loader_of(12, 4, exact, lambda samples: [torch.tensor([i for i in samples if i % 3 != 1])])
    fit = trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader)
    check(module.gradients, [[0, 2, 3, 5, 6], [8, 9, 11]], torch.ones(12))
    assert list(logger.values("batch_size").values()) == ([8, 4] if exact else [8, 3])


@pytest.mark.parametrize("exact", [True, False])
def test_a_micro_batch_that_is_none(tmp_path: Path, exact: bool) -> None:
    loader = loader_of(12, 4, exact, lambda samples: None if 4 in samples else [torch.tensor(samples)])
    with pytest.raises(ConfigurationError, match="gave None in place of a micro-batch, and GradientAccumulation"):
        trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(Tally(12), loader)


def test_several_resumable_loaders(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="several training loaders with a ResumableBatchSampler"):
        trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(
            Tally(40), {"a": resumable(40, 4), "b": resumable(40, 4)}
        )


class FirstOf(Tally):
    """Takes the indices out of a batch of another form."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step([batch["index"]], batch_idx)


@pytest.mark.parametrize("exact", [True, False])
def test_tensors_that_do_not_tell_the_samples(tmp_path: Path, exact: bool) -> None:
    """Tokens of [time, samples], longer than the micro-batch: the loader's size counts, and a warning says so."""

    def collate(samples: list[int]) -> dict[str, Tensor]:
        return {"tokens": torch.zeros(9, len(samples)), "index": torch.tensor([samples] * 9)}

    module, logger = FirstOf(16), Recorder(tmp_path)
    fit = trainer(tmp_path, [BatchSizeRamp("0:4 8:8")], max_epochs=1, logger=logger, log_every_n_steps=1)
    with pytest.warns(UserWarning, match=r"first dimensions \[9\], and the loader's micro-batch is 2"):
        fit.fit(module, loader_of(16, 2, exact, collate))
    assert list(logger.values("batch_size").values()) == [4, 4, 8]
    check(module.gradients, [[0, 1, 2, 3], [4, 5, 6, 7], list(range(8, 16))], torch.ones(16))


@pytest.mark.parametrize("exact", [True, False])
def test_a_number_beside_the_samples(tmp_path: Path, exact: bool) -> None:
    def collate(samples: list[int]) -> dict[str, Tensor]:
        return {"temperature": torch.tensor(1.0), "one": torch.ones(1), "index": torch.tensor(samples)}

    module = FirstOf(16)
    fit = trainer(tmp_path, [BatchSizeRamp("0:4 8:8")], max_epochs=1)
    fit.fit(module, loader_of(16, 2, exact, collate))
    check(module.gradients, [[0, 1, 2, 3], [4, 5, 6, 7], list(range(8, 16))], torch.ones(16))


class Overclaiming(IterableDataset[tuple[Tensor]]):
    """Says 30 and gives 20."""

    def __len__(self) -> int:
        return 30

    def __iter__(self) -> Any:
        return iter([(torch.tensor(i),) for i in range(20)])


def test_a_loader_that_ends_before_its_length(tmp_path: Path) -> None:
    module = Tally(20)
    fit = trainer(tmp_path, [GradientAccumulation(8)], max_epochs=2)
    with pytest.warns(UserWarning, match="an epoch ended inside a step, which is left out"):
        fit.fit(module, DataLoader(Overclaiming(), batch_size=4))
    check(module.gradients, [list(range(8)), list(range(8, 16))] * 2, torch.ones(20))


def test_a_scaled_step_without_a_last_loss(tmp_path: Path) -> None:
    class Last(Tally):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)

    scaler = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigurationError, match="return a loss of 0 with num_items 0"):
        trainer(tmp_path, [GradientAccumulation(6)], max_epochs=1, plugins=[scaler]).fit(Last(18), indices(18, 2))
    module = Last(18)
    trainer(tmp_path, [GradientAccumulation(6)], max_epochs=1).fit(module, indices(18, 2))
    check(module.gradients, [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15]], torch.ones(18))


def test_overfitting_on_a_resumable_loader(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="overfit_batches repeats the same batches"):
        trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1, overfit_batches=2).fit(Tally(16), resumable(16, 4))


def test_callbacks_added_to_a_run_that_had_none(tmp_path: Path) -> None:
    """Its checkpoint does not say how many samples were consumed."""

    def fit(*callbacks: L.Callback, loader: Any, ckpt: Path | None = None) -> L.Trainer:
        run = trainer(tmp_path, list(callbacks), max_epochs=1 if ckpt is None else 3)
        run.fit(Tally(40), loader, ckpt_path=ckpt)
        return run

    plain = fit(loader=resumable(40, 4))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    for callback in (GradientAccumulation(8), BatchSizeRamp("0:4 20:8")):
        with pytest.raises(ConfigurationError, match="does not say how many samples were consumed"):
            fit(callback, loader=resumable(40, 4), ckpt=tmp_path / "plain.ckpt")
    with pytest.raises(ConfigurationError, match="which the batch size follows from"):
        fit(BatchSizeRamp("0:4 20:8"), loader=indices(40, 4), ckpt=tmp_path / "plain.ckpt")
    fit(GradientAccumulation(8), loader=indices(40, 4), ckpt=tmp_path / "plain.ckpt")


def test_an_exception_between_step_and_micro_batch_end(tmp_path: Path) -> None:
    """The step was taken, so its samples count as consumed."""

    class Broken(Tally):
        def lr_scheduler_step(self, *args: Any) -> None:
            if self.trainer.global_step == 3:
                raise RuntimeError("boom")

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    fit = trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        fit.fit(Broken(40), resumable(40, 4))
    (adapter,) = [c for c in fit.callbacks if type(c).__name__ == "LoopAdapter"]  # type: ignore[attr-defined]
    assert (fit.global_step, adapter.progress.samples) == (3, 24)
