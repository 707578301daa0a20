"""Loaders that filter, stop early or hide how many samples they give: the mean stays true, or there is a sentence."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_scale.callbacks import BatchSizeRamp, GradientAccumulation, LEGWWarmup, ValidateEvery
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
    assert list(logger.values("batch_size").values()) == [8, 4]


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


class Graphs:
    """A batch that is an object with tensors inside, as of a graph library."""

    def __init__(self, samples: list[int]) -> None:
        self.samples = torch.tensor(samples)

    def to(self, *args: Any, **kwargs: Any) -> Graphs:
        return self


FORMS: dict[str, tuple[Any, Any]] = {
    "an object": (Graphs, lambda batch: batch.samples),
    "time in front": (lambda samples: torch.tensor(samples).repeat(9, 1), lambda batch: batch[0]),
    "packed": (lambda samples: {"ids": torch.tensor(samples).repeat(5)}, lambda batch: batch["ids"]),
    "a list of numbers": (list, lambda batch: torch.tensor(batch)),
}


class Formed(Tally):
    """The indices lie somewhere in the batch."""

    def __init__(self, size: int, indices_of: Any) -> None:
        super().__init__(size)
        self._indices_of = indices_of

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.weight[self._indices_of(batch)].mean()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_samples_that_no_tensors_first_dimension_shows(tmp_path: Path, form: str, exact: bool) -> None:
    """The sampler knows how many there are, also in an epoch's last micro-batch."""
    collate, indices_of = FORMS[form]
    module, logger = Formed(14, indices_of), Recorder(tmp_path)
    fit = trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader_of(14, 4, exact, collate))
    check(module.gradients, [list(range(8)), list(range(8, 14))], torch.ones(14))
    assert list(logger.values("batch_size").values()) == [8, 6]


def test_fewer_than_were_asked_for_is_said(tmp_path: Path) -> None:
    loader = loader_of(14, 4, False, lambda samples: torch.tensor(samples).repeat(3, 1))
    with pytest.warns(UserWarning, match=r"first dimension 3, and 4 samples were asked for: .*num_items"):
        trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(Formed(14, lambda batch: batch[0]), loader)


class Stream(IterableDataset[Any]):
    """24 samples, of which each worker gives its share; or batches of 4 of them."""

    def __init__(self, batch: int | None = None) -> None:
        self._batch = batch

    def __iter__(self) -> Any:
        worker = get_worker_info()
        own = range(24)[worker.id :: worker.num_workers] if worker is not None else range(24)
        for start in range(0, len(own), self._batch or 1):
            yield torch.tensor(own[start : start + self._batch]) if self._batch else torch.tensor(own[start])


def test_workers_that_end_with_short_batches(tmp_path: Path) -> None:
    """Two workers with 12 samples each, in micro-batches of 5, 5 and 2: what is logged is what the steps were made of."""
    logger, module = Recorder(tmp_path), Formed(24, lambda batch: batch)
    loader = DataLoader(Stream(), batch_size=5, num_workers=2)
    fit = trainer(tmp_path, [GradientAccumulation(10)], max_epochs=1, logger=logger, log_every_n_steps=1)
    fit.fit(module, loader)
    sizes = [int((gradient != 0).sum()) for gradient in module.gradients]
    assert sizes == [10, 10, 4] and list(logger.values("batch_size").values()) == sizes


@pytest.mark.parametrize(
    "owner", [GradientAccumulation(8, micro_batch_size=4), BatchSizeRamp("0:8", micro_batch_size=4)]
)
def test_a_loader_of_whole_batches(tmp_path: Path, owner: Any) -> None:
    module = Formed(24, lambda batch: batch)
    trainer(tmp_path, [owner], max_epochs=1).fit(module, DataLoader(Stream(4), batch_size=None))
    check(module.gradients, [list(range(start, start + 8)) for start in (0, 8, 16)], torch.ones(24))


def test_a_loader_of_whole_batches_without_their_size(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"\(batch_size=None\), .*GradientAccumulation\(micro_batch_size=\.\.\.\)"
    ):
        trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(
            Tally(24), DataLoader(Stream(4), batch_size=None)
        )


def test_a_micro_batch_size_that_the_loader_contradicts(tmp_path: Path) -> None:
    owner = GradientAccumulation(8, micro_batch_size=2)
    with pytest.raises(
        ConfigurationError, match=r"micro_batch_size is 2 but the training loader's batch size is 4: leave"
    ):
        trainer(tmp_path, [owner], max_epochs=1).fit(Tally(16), loader_of(16, 4, False, None))
    with pytest.raises(ValueError, match="micro_batch_size"):
        GradientAccumulation(8, micro_batch_size=0)


def test_steps_that_fetch_their_own_micro_batches(tmp_path: Path) -> None:
    class Fetching(Tally):
        def training_step(self, dataloader_iter: Any) -> Any:
            raise AssertionError("not reached")

    for callback in (GradientAccumulation(8), LEGWWarmup(8)):
        with pytest.raises(ConfigurationError, match=r"Fetching\.training_step takes dataloader_iter"):
            trainer(tmp_path, [callback], max_epochs=1).fit(Fetching(16), loader_of(16, 4, False, None))


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size"])
def test_an_epoch_of_several_loaders_is_lightnings(tmp_path: Path, mode: str) -> None:
    """A warmup of two epochs takes two of them, whichever loader ends them."""
    rates: list[float] = []

    class Both(Tally):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.weight[batch["a"]].mean() + self.weight[batch["b"]].mean()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    loaders = {"a": DataLoader(range(32), batch_size=4), "b": DataLoader(range(64), batch_size=4)}
    fit = trainer(tmp_path, [GradientAccumulation(8), LEGWWarmup(8, "2 epochs")], max_epochs=3)
    fit.fit(Both(64), CombinedLoader(loaders, mode))
    assert sum(rate < 0.999 for rate in rates) + 1 == 2 * len(rates) // 3


@pytest.mark.parametrize("callback", [GradientAccumulation(8), ValidateEvery("2 steps")])
def test_validation_by_time(tmp_path: Path, callback: Any) -> None:
    fit = trainer(tmp_path, [callback], max_epochs=1, val_check_interval=timedelta(minutes=10))
    if isinstance(callback, ValidateEvery):
        with pytest.raises(ConfigurationError, match="both say when to validate"):
            fit.fit(Tally(16), resumable(16, 4))
        return
    fit.fit(Tally(16), resumable(16, 4))
    assert fit.global_step == 2


class TwoSteps(torch.optim.SGD):
    def first_step(self) -> None: ...

    def second_step(self) -> None: ...


class Again(torch.optim.SGD):
    """Calls its closure twice."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        return super().step(closure)


@pytest.mark.parametrize("kind", [TwoSteps, Again, torch.optim.LBFGS])
def test_optimizers_that_compute_gradients_inside_of_their_step(tmp_path: Path, kind: Any) -> None:
    """Refused in a window of several micro-batches; of one they see all of the batch."""

    def make() -> Tally:
        return Tally(16, lambda parameters: kind(parameters, lr=1.0))

    with pytest.raises(ConfigurationError, match=rf"{kind.__name__} computes gradients inside of its step"):
        trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(make(), loader_of(16, 4, False, tensors))
    module = make()
    trainer(tmp_path, [GradientAccumulation(4)], max_epochs=1).fit(module, loader_of(16, 4, False, tensors))
    assert float(module.weight.detach().abs().sum()) > 0


def tensors(samples: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(samples)]


class Wrapped:
    """A loader of another package: neither a DataLoader nor with a data set of its own."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader, self.batch_sampler, self.batch_size = loader, loader.batch_sampler, loader.batch_size

    def __iter__(self) -> Any:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


def test_a_loader_without_a_data_set(tmp_path: Path) -> None:
    module = Tally(14)
    trainer(tmp_path, [GradientAccumulation(8)], max_epochs=1).fit(module, Wrapped(indices(14, 4)))
    check(module.gradients, [list(range(8)), list(range(8, 14))], torch.ones(14))
