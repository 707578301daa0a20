"""A run that stops anywhere goes on with the next step, and ends with the bits of one that did not stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_scale.callbacks import (
    BatchSizeRamp,
    ExactResume,
    GradientAccumulation,
    SequenceLengthStages,
    Stage,
    ValidateEvery,
)
from tests.toys import Boom, Net, SaveAt, Vectors, trainer


def adam(
    root: Path, *more: L.Callback, ckpt: Path | None = None, batch: int = 12, **options: Any
) -> tuple[Net, L.Trainer]:
    L.seed_everything(0, verbose=False)
    module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    fit = trainer(root, [GradientAccumulation(batch), *more], **{"max_steps": 8, **options})
    fit.fit(module, Vectors(4), ckpt_path=ckpt)
    return module, fit


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 7, "max_epochs": -1}], ids=["whole epochs", "limited"])
def test_a_checkpoint_after_any_micro_batch_resumes_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    """Inside a window too: it holds the state of the window's start. 25 (or 7) micro-batches an epoch, 3 a window."""
    steps = {"max_steps": 12, **options}
    whole, reference = adam(tmp_path, **steps)
    for micro_batch in (0, 1, 2, 3, 5, 6, 7, 13, 14, 20, 23, 24, 25, 27):
        path = tmp_path / f"{micro_batch}.ckpt"
        adam(tmp_path, SaveAt(path, micro_batch), **steps)
        done = torch.load(path, weights_only=True)["global_step"]
        rest, fit = adam(tmp_path, ckpt=path, **steps)
        assert rest.steps == whole.steps[done:], micro_batch
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))
        assert fit.global_step == reference.global_step


@pytest.mark.parametrize("micro_batch", [4, 5, 6])
def test_a_checkpoint_on_an_exception_lies_at_the_last_windows_end(tmp_path: Path, micro_batch: int) -> None:
    """Windows of 3 in 12 micro-batches of shuffled, resumable data: killed at micro-batch 4, 5 or 6 (from 0)."""

    def run(*more: L.Callback, ckpt: Path | None = None) -> Net:
        try:
            return adam(tmp_path, *more, ckpt=ckpt, enable_checkpointing=True)[0]
        except RuntimeError:
            assert more
            return Net(lambda m: None)

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

    whole, _ = adam(tmp_path, batch=16, max_steps=5)
    _, stopped = adam(tmp_path, Stop(), batch=16, max_steps=5)
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    rest, _ = adam(tmp_path, ckpt=tmp_path / "stopped.ckpt", batch=16, max_steps=5)
    assert rest.steps == whole.steps[1:]


def ramp_run(root: Path, *more: L.Callback, ckpt: Path | None = None) -> tuple[Net, L.Trainer]:
    L.seed_everything(0, verbose=False)
    module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    fit = trainer(root, [BatchSizeRamp("0:5 40:13 90:27 210:8", lr_scaling="sqrt"), *more], max_steps=24, max_epochs=-1)
    fit.fit(module, Vectors(4), ckpt_path=ckpt)
    return module, fit


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_end"])
def test_a_resume_anywhere_has_the_bits_of_the_whole_run(tmp_path: Path, hook: str) -> None:
    """Epochs have 31 and 27 micro-batches; also at an epoch's last micro-batch, whose successor has another length."""
    whole, reference = ramp_run(tmp_path)
    for micro_batch in (0, 1, 3, 7, 16, 17, 29, 30, 31, 44, 56, 57, 58) if hook == "on_train_batch_end" else (0, 31):
        path = tmp_path / f"{micro_batch}.ckpt"
        ramp_run(tmp_path, SaveAt(path, micro_batch, hook))
        done = torch.load(path, weights_only=True)["global_step"]
        rest, fit = ramp_run(tmp_path, ckpt=path)
        assert rest.steps == whole.steps[done:], micro_batch
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))
        assert (fit.global_step, fit.current_epoch) == (reference.global_step, reference.current_epoch)


def plateau(interval: str) -> Any:
    def configure(module: L.LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": "train_loss"},
        }

    return configure


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_scheduler_that_watches_a_metric(tmp_path: Path, interval: str) -> None:
    """Also from a checkpoint inside an epoch's first window; the rest of a resumed epoch is followed by an update.

    (An update that was due at the checkpoint's own micro-batch is left out, as in plain Lightning.)
    """

    def run(*more: L.Callback, ckpt: Path | None = None) -> tuple[Net, L.Trainer]:
        L.seed_everything(0, verbose=False)
        module = Net(plateau(interval))
        fit = trainer(tmp_path, [GradientAccumulation(20), *more], max_epochs=4)
        fit.fit(module, Vectors(4), ckpt_path=ckpt)
        return module, fit

    whole, reference = run()
    assert len({rate for _, rate, _ in whole.steps}) > 2
    for micro_batch in (0, 1, 8, 25, 26, 33):
        path = tmp_path / f"{micro_batch}.ckpt"
        run(SaveAt(path, micro_batch))
        rest, fit = run(ckpt=path)
        assert rest.steps == whole.steps[torch.load(path, weights_only=True)["global_step"] :], micro_batch
        loops = [t.fit_loop.epoch_loop._batches_that_stepped for t in (fit, reference)]
        assert loops[0] == loops[1], micro_batch  # the loggers' step


@pytest.mark.parametrize("options", [{"max_steps": 2}, {}], ids=["by max_steps", "by should_stop"])
def test_a_stop_inside_an_epoch_leaves_its_rest_to_the_resumed_run(tmp_path: Path, options: dict[str, Any]) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, fit: L.Trainer, module: Any, out: Any, batch: Any, batch_idx: int) -> None:
            fit.should_stop = batch_idx == 5 and not options

    def run(*more: L.Callback, ckpt: Path | None = None, **more_options: Any) -> tuple[Net, L.Trainer]:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
        fit = trainer(tmp_path, [GradientAccumulation(12), *more], **{"max_epochs": 3, **more_options})
        fit.fit(module, Vectors(4), ckpt_path=ckpt)
        return module, fit

    whole, reference = run()
    _, stopped = run(Stop(), **options)
    assert stopped.global_step == 2
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    rest, fit = run(ckpt=tmp_path / "stopped.ckpt")
    assert rest.steps == whole.steps[2:]
    assert (fit.global_step, fit.current_epoch) == (reference.global_step, reference.current_epoch)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end", "on_train_batch_end"])
def test_without_an_owner_of_the_batch_size(tmp_path: Path, hook: str) -> None:
    """The Trainer's own accumulation, and a loader that goes on."""

    def run(*more: L.Callback, ckpt: Path | None = None) -> tuple[Net, L.Trainer]:
        L.seed_everything(0, verbose=False)
        module = Net(lambda m: torch.optim.Adam(m.parameters(), lr=0.01), dropout=0.2)
        fit = trainer(tmp_path, [ExactResume(), *more], max_epochs=3, accumulate_grad_batches=5)
        fit.fit(module, Vectors(4), ckpt_path=ckpt)
        return module, fit

    whole, _ = run()
    for micro_batch in (0, 7, 24, 26, 49):
        path = tmp_path / f"{micro_batch}.ckpt"
        run(SaveAt(path, micro_batch, hook))
        if path.exists():
            rest, fit = run(ckpt=path)
            assert rest.steps == whole.steps[torch.load(path, weights_only=True)["global_step"] :], micro_batch
            assert fit.current_epoch == 3


class Early(L.Callback):
    """Asks the Trainer, before there are loaders, for what only loaders tell."""

    def __init__(self, hook: str, attribute: str) -> None:
        if hook != "configure_optimizers":
            setattr(self, hook, lambda trainer, *args, **kwargs: getattr(trainer, attribute))


@pytest.mark.parametrize("attribute", ["accumulate_grad_batches", "estimated_stepping_batches"])
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "configure_optimizers"])
@pytest.mark.parametrize("staged", [False, True])
def test_a_trainer_that_is_asked_early(tmp_path: Path, hook: str, attribute: str, staged: bool) -> None:
    """A resume goes on where it was, all the same."""

    def configure(module: L.LightningModule) -> Any:
        if hook == "configure_optimizers":
            getattr(module.trainer, attribute)
        return torch.optim.Adam(module.parameters(), lr=0.01)

    def run(*more: L.Callback, ckpt: Path | None = None) -> Net:
        L.seed_everything(0, verbose=False)
        module = Net(configure)
        stages = [Stage(8, 3, 16, 4, lr=0.1, warmup="40%"), Stage(16, 4, 8, 2, lr=0.05)]
        owner = SequenceLengthStages(stages) if staged else GradientAccumulation(12)
        options = {} if staged else {"max_steps": 9, "max_epochs": -1}
        callbacks = [ExactResume(), owner, Early(hook, attribute), ValidateEvery("2 steps"), *more]
        trainer(tmp_path, callbacks, **options).fit(module, Vectors(4), ckpt_path=ckpt)
        return module

    for micro_batch in (5, 18):
        path = tmp_path / f"{micro_batch}.ckpt"
        whole = run(SaveAt(path, micro_batch))
        done = torch.load(path, weights_only=True)["global_step"]
        rest = run(ckpt=path)
        assert rest.steps == whole.steps[done:] and 0 < done < len(whole.steps)
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True))
