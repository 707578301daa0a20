"""Ray Train's way to start Lightning: workers of which one dies, and which are started anew, have the bits of two ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from lightning_scale.callbacks import ExactResume, GradientAccumulation, LEGWWarmup
from lightning_scale.optim import LAMB
from tests.clients.packages import LanguageModel, Run, texts
from tests.clients.seen import note
from tests.distributed.launch import run_ranks
from tests.processes.forks import ROOT

ray = pytest.importorskip("ray")


def train(**options: Any) -> dict[str, Tensor]:
    """Three epochs of the help texts, on the ranks that there are."""
    L.seed_everything(1, verbose=False)
    callbacks = [GradientAccumulation(16), LEGWWarmup(4, "4 steps"), ExactResume(), *options.pop("callbacks", [])]
    resumed = options.pop("ckpt_path", None)
    quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=3, callbacks=callbacks, enable_checkpointing=False, **quiet, **options
    )
    if "plugins" in options:
        from ray.train.lightning import prepare_trainer

        trainer = prepare_trainer(trainer)
    trainer.fit(LanguageModel(LAMB, 0.01), texts(Run(4, resumable=True)), ckpt_path=resumed)
    assert trainer.world_size == 2 and trainer.global_step == 9
    return {name: weight.detach().clone() for name, weight in trainer.lightning_module.named_parameters()}


def on_two_ranks(folder: str) -> dict[str, Tensor]:
    return train(devices=2, strategy="ddp")


class Die(L.Callback):
    """The second worker ends in its second epoch, inside a step, once."""

    def __init__(self, died: Path) -> None:
        self.died = died

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == 1 and not self.died.exists():
            self.died.touch()
            time.sleep(5)  # Ray takes note of a checkpoint within two seconds
            os._exit(1)


def on_a_worker(config: dict[str, str]) -> None:
    """What Ray runs on each, in the words of its guide."""
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback

    torch.set_num_threads(1)
    folder = Path(config["folder"])
    checkpoint, resumed = ray.train.get_checkpoint(), None
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            resumed = os.path.join(saved, "checkpoint.ckpt")
    found = train(
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[RayTrainReportCallback(), Die(folder / "died")],
        ckpt_path=resumed,
    )
    rank = ray.train.get_context().get_world_rank()
    torch.save(found, folder / f"worker{rank}.pt")
    (folder / f"resumed{rank}").write_text(str(resumed))


def test_a_worker_that_dies_changes_no_bit(tmp_path: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    variables = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    try:
        TorchTrainer(
            on_a_worker,
            train_loop_config={"folder": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
            run_config=RunConfig(storage_path=str(tmp_path / "ray"), failure_config=FailureConfig(max_failures=1)),
        ).fit()
    finally:
        ray.shutdown()
    assert (tmp_path / "died").exists() and "checkpoint.ckpt" in (tmp_path / "resumed0").read_text()
    (plain := tmp_path / "plain").mkdir()
    expected = run_ranks(__name__, "on_two_ranks", plain)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"worker{rank}.pt", weights_only=True)
        for name, weight in expected[rank].items():
            assert torch.equal(weight, found[name]), name
    note("ray", version=ray.__version__)
