"""Each package's module: the gradient of a step, all callbacks at once, two ranks, a kill. What is seen goes to the page."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_scale import callbacks as ours
from lightning_scale.optim import LAMB
from tests.clients.packages import CLIENTS, Client, Run
from tests.clients.seen import note
from tests.distributed.launch import run_killed, run_ranks

every_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=str)
who_goes_on = pytest.mark.parametrize("package", [client.package for client in CLIENTS.values() if client.goes_on])


class Gradients(L.Callback):
    """Every step's, as one vector."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        gradients = [parameter.grad.flatten() for parameter in pl_module.parameters() if parameter.grad is not None]
        self.steps.append(torch.cat(gradients).clone())


def fit(client: Client, micro_batch: int, callbacks: list[L.Callback], **run: Any) -> L.Trainer:
    """From one seed."""
    L.seed_everything(1, verbose=False)
    options = {"callbacks": callbacks, **run.pop("options", {})}
    return client.fit(Run(micro_batch, options=options, **run))


def find(trainer: L.Trainer, kind: type) -> Any:
    """The callback that ran, which may be a package's copy."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))


def weights(trainer: L.Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in trainer.lightning_module.named_parameters()}


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@every_client
def test_a_step_has_the_gradient_of_its_whole_batch(client: Client) -> None:
    # An epoch's steps: later ones have other samples where a module draws random numbers in each micro-batch.
    whole = find(fit(client, client.batch, [Gradients()], steps=3), Gradients).steps
    window = [ours.GradientAccumulation(client.batch), Gradients()]
    cut = find(fit(client, client.batch // 4, window, steps=3), Gradients).steps

    assert len(whole) == len(cut) == 3
    distances = [distance(*pair) for pair in zip(whole, cut, strict=True)]
    note(client.package, gradient=max(distances))
    assert max(distances) < 1e-6
    assert distance(whole[0], whole[1]) > 1e-3, "gradients that are all the same would tell nothing"


def observers(client: Client, folder: Path) -> list[L.Callback]:
    """Every callback but those that say what a step is."""
    found = [
        ours.TrustRatioMonitor(every_n_steps=1, dir=str(folder)),
        ours.GradientNoiseScale(every_n_steps=1, dir=str(folder)),
        ours.NonfiniteMonitor(every_n_steps=1),
        ours.ExactResume(),  # it gives the training random numbers of its own
        ours.FailTogether(),
        ours.StepProgressBar(),
        ours.SaveOnSignal(),
    ]
    if client.saves:
        found += [ModelCheckpoint(dirpath=folder / "saved", every_n_train_steps=2, save_top_k=-1), ours.Resume()]
    return [ours.ValidateEvery("2 steps"), *found] if client.validates else found


@every_client
@pytest.mark.parametrize("grows", [False, True], ids=["fixed batch", "growing batch"])
def test_all_callbacks_at_once(client: Client, grows: bool, tmp_path: Path) -> None:
    micro, batch = client.batch // 4, client.batch
    legw = ours.LEGWWarmup(batch // 4, "4 steps")
    ramp = f"0:{batch // 2} {batch}:{batch}"  # two steps of half the batch
    sizes = 2 * [batch // 2] + 4 * [batch] if grows else 6 * [batch]

    def owner() -> L.Callback:
        return ours.BatchSizeRamp(ramp) if grows else ours.GradientAccumulation(batch)

    def run(steps: int) -> L.Trainer:
        options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "default_root_dir": tmp_path}
        options |= {"enable_checkpointing": True, "enable_progress_bar": True}
        callbacks = [owner(), legw, *observers(client, tmp_path)]
        return fit(client, micro, callbacks, steps=steps, optimizer=LAMB, options=options)

    trainer = run(6)
    assert trainer.global_step == 6
    rows = pd.read_csv(Path(trainer.logger.log_dir) / "metrics.csv").groupby("step").first()
    expected = [0.01 * (size / micro) ** 0.5 * min(1.0, (step + 1) / 4) for step, size in enumerate(sizes)]
    assert list(rows["lr"][:6]) == pytest.approx(expected)
    full = rows["batch_size"][:6].astype(int).tolist()
    assert sum(size == seen for size, seen in zip(sizes, full, strict=True)) >= 4, (
        full
    )  # an epoch's last one is smaller
    ratios = rows.filter(like="trust_ratio/")
    assert ratios.shape[1] > 2 and rows["noise_scale/trace"].notna().sum() == 6
    assert (ratios.notna().sum() == 6).all() and ((ratios > 0) | ratios.isna()).all(axis=None)
    assert (tmp_path / "trust_ratios.png").exists()
    if client.validates:
        assert [step for step in rows.index if not pd.isna(rows.filter(like="val_loss")["val_loss"].get(step))] == [
            1,
            3,
            5,
        ]

    alone = fit(client, micro, [owner(), legw, ours.ExactResume()], steps=6, optimizer=LAMB)
    for name, weight in weights(alone).items():
        assert torch.equal(weight, weights(trainer)[name]), f"watching the training has changed {name}"

    note(client.package, callbacks=len(observers(client, tmp_path)) + 2)
    if not client.saves:
        return
    longer = run(8)  # from the sixth step's checkpoint
    assert longer.global_step == 8 and all(bool(weight.isfinite().all()) for weight in weights(longer).values())


def train_on_ranks(folder: str) -> dict[str, Tensor]:
    """One of two ranks, or the only process."""
    client = CLIENTS[(Path(folder) / "package").read_text()]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    callbacks: list[L.Callback] = [
        ours.GradientAccumulation(client.batch),
        ours.LEGWWarmup(client.batch // 4, "4 steps"),
    ]
    trainer = fit(client, client.batch // 4, callbacks, steps=6, resumable=True, ranks=ranks)
    return {name: weight.clone() for name, weight in weights(trainer).items()}


@pytest.mark.parametrize("package", ["chemprop", "pytorch-forecasting", "transformers"])
def test_two_ranks_make_the_steps_of_one_process(package: str, tmp_path: Path) -> None:
    (tmp_path / "package").write_text(package)
    one, other = run_ranks(__name__, "train_on_ranks", tmp_path)
    alone = train_on_ranks(str(tmp_path))
    apart = distance(*(torch.cat([weight.flatten() for weight in weights.values()]) for weights in (alone, one)))
    note(package, two_ranks=apart)
    assert apart < 1e-6
    assert all(torch.equal(one[name], other[name]) for name in one)


class Kill(L.Callback):
    """Inside the sixth step's window."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == 5 and trainer.fit_loop.epoch_loop.batch_progress.current.ready % 4 == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def start(folder: str) -> dict[str, Tensor]:
    """A run's start, which is killed where a file says so."""
    client = CLIENTS[(Path(folder) / "package").read_text()]
    saving = ModelCheckpoint(dirpath=Path(folder) / "saved", every_n_train_steps=2, save_top_k=-1)
    callbacks = [ours.GradientAccumulation(client.batch), ours.LEGWWarmup(client.batch // 4, "4 steps")]
    callbacks += [ours.ExactResume(), saving, ours.Resume(), *([Kill()] if (Path(folder) / "kill").exists() else [])]
    options = {"enable_checkpointing": True, "default_root_dir": folder}
    trainer = fit(client, client.batch // 4, callbacks, steps=9, optimizer=LAMB, resumable=True, options=options)
    return {name: weight.clone() for name, weight in weights(trainer).items()}


@who_goes_on
def test_a_killed_run_goes_on_with_the_same_bits(package: str, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
        (folder / "package").write_text(package)
    (killed / "kill").touch()
    run_killed(__name__, "start", killed, world_size=1)
    (killed / "kill").unlink()
    assert list((killed / "saved").glob("*.ckpt")), "nothing was saved before the kill"
    ended, uninterrupted = run_ranks(__name__, "start", killed, 1)[0], run_ranks(__name__, "start", whole, 1)[0]
    for name, weight in uninterrupted.items():
        assert torch.equal(weight, ended[name]), name
    note(package, killed=True)
