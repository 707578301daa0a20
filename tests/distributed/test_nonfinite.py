"""A NaN at one rank: all ranks leave the step out, and stop together where too many follow one another."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor, nn

from lightning_scale.callbacks import GradientAccumulation, NonfiniteMonitor
from lightning_scale.errors import NonfiniteGradientsError
from lightning_scale.optim import LAMB
from lightning_scale.strategies import FSDP2Strategy
from tests.distributed.launch import run_ranks, start_ranks
from tests.distributed.meshes import FSDP2
from tests.distributed.zero_runs import needs_deepspeed, users_optimizer
from tests.optim.kinds import bits
from tests.toys import Recorder, Vectors, trainer

STEPS = 12


class Poisoned(L.LightningModule):
    """At some steps the first layer's gradient is NaN at one rank, or the loss is."""

    def __init__(self, bad: dict[int, int], loss: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 1)
        self.bad, self.loss = bad, loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        hidden = self.first(batch[0])
        now = self.bad.get(self.trainer.global_step) == self.global_rank
        if now and not self.loss:
            hidden.register_hook(lambda grad: grad * torch.nan)
        loss = (self.last(torch.tanh(hidden)) - 1).square().mean()
        return loss * torch.nan if now and self.loss else loss

    def configure_optimizers(self) -> Any:
        return LAMB(self.parameters(), lr=0.01)


class Changes(L.Callback):
    """At which steps weights or optimizer state changed, a bit of them, on this rank."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def _hold(self, run: L.Trainer, module: L.LightningModule) -> Any:
        weights: list[Any] = [getattr(p, "ds_tensor", p.data) for p in module.parameters()]
        optimizer = users_optimizer(run)
        state = [t for of_one in optimizer.state.values() for t in of_one.values() if isinstance(t, Tensor)]
        flat = list(optimizer.state)  # ZeRO's float32 weights are the keys
        # Bits: the padding of ZeRO-3's shares was never written, and may be NaN.
        return bits([t.to_local() if hasattr(t, "to_local") else t for t in [*weights, *state, *flat]])

    def on_train_batch_start(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._held, self._step = self._hold(run, module), run.global_step

    def on_train_batch_end(self, run: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if self._hold(run, module) != self._held:
            self.steps.append(self._step)


def strategy(name: str) -> Any:
    if name == "ddp":
        return "ddp"
    if name == "fsdp2":
        return FSDP2Strategy()
    from lightning_scale.strategies import ZeROStrategy

    return ZeROStrategy(int(name[0]), offload_optimizer="cpu" if "offloaded" in name else None)


def fit(root: Path, name: str, bad: dict[int, int], loss: bool, monitor: NonfiniteMonitor) -> Any:
    changes, logger = Changes(), Recorder(root / name)
    clip = None if name == "fsdp2" else 1.0  # a clip by the norm spreads a NaN over all layers
    parts = [changes, GradientAccumulation(16), monitor]
    run = trainer(
        root, parts, max_steps=STEPS, max_epochs=-1, devices=2, strategy=strategy(name), logger=logger,
        gradient_clip_val=clip, use_distributed_sampler=False,
        precision="bf16-mixed" if "bfloat16" in name else "32-true",
    )  # fmt: skip
    said = ""
    try:
        run.fit(Poisoned(bad, loss), Vectors(4))
    except NonfiniteGradientsError as error:
        said = str(error)
    return {"said": said, "changed": changes.steps, "logged": logger.values("skipped_steps"), "at": run.global_step}


def random_steps(seed: int) -> dict[int, int]:
    """Four of the steps, never three in a row, and one rank for each."""
    draw = random.Random(seed)
    while True:
        steps = sorted(draw.sample(range(1, STEPS), 4))  # the first step makes state
        if all(c - a > 2 for a, c in zip(steps, steps[2:], strict=False)):
            return {step: draw.randrange(2) for step in steps}


def _found(folder: str, names: list[str]) -> dict[str, Any]:
    found = {}
    for number, name in enumerate(names):
        bad = random_steps(number)
        found[f"{name}, random"] = fit(Path(folder), name, bad, number % 2 == 0, NonfiniteMonitor(3, 5))
        bad = {1: 0, 5: 1, 6: 1, 7: 1}
        found[f"{name}, in a row"] = fit(Path(folder), name, bad, False, NonfiniteMonitor(3, 1))
        if name in LATER:
            found[f"{name}, seen later"] = fit(Path(folder), name, bad, True, NonfiniteMonitor(3, 10))
    return found


def check(ranks: list[dict[str, Any]], names: list[str]) -> None:
    for rank, found in enumerate(ranks):
        for number, name in enumerate(names):
            bad, one = random_steps(number), found[f"{name}, random"]
            assert one["changed"] == [step for step in range(STEPS) if step not in bad], (name, rank)
            assert one["said"] == "" and one["at"] == STEPS
            if rank == 0:
                counts = {look - 1: sum(step < look for step in bad) for look in (5, 10, 12)}
                changes = dict.fromkeys(counts.values())  # written where the count has changed
                assert list(one["logged"].values()) == list(changes)
                assert all(counts[step] == count for step, count in one["logged"].items())
            one = found[f"{name}, in a row"]
            assert one["at"] == 8 and one["changed"] == [0, 2, 3, 4], (name, rank)
            assert one["said"].startswith("3 steps in a row were skipped, up to step 8,"), name
            assert "those of first.weight, first.bias. The loss was finite on all ranks." in one["said"], one["said"]
            if name not in LATER:
                continue
            later = found[f"{name}, seen later"]
            assert later["at"] == 10 and later["changed"] == [0, 2, 3, 4, 8, 9], (name, rank)
            every = "first.weight, first.bias, last.weight, last.bias"
            assert (
                f"up to step 8, for their gradients had NaN or Inf elements, in that step those of {every}."
                in later["said"]
            )
            assert "The loss was not finite on rank 1." in later["said"]


LATER = ["fsdp2", "2", "3"]
PLAIN, ZERO = ["ddp", *(["fsdp2"] if FSDP2 else [])], ["1", "2", "3", "2 offloaded", "3 offloaded", "1 bfloat16"]


def plain_ranks(folder: str) -> dict[str, Any]:
    return _found(folder, PLAIN)


def zero_ranks(folder: str) -> dict[str, Any]:
    return _found(folder, ZERO)


@pytest.mark.timeout(200)
def test_ddp_and_fsdp2(tmp_path: Path) -> None:
    check(run_ranks(__name__, "plain_ranks", tmp_path, timeout=180), PLAIN)


@needs_deepspeed
@pytest.mark.timeout(500)
def test_zero(tmp_path: Path) -> None:
    check(run_ranks(__name__, "zero_ranks", tmp_path, timeout=480), ZERO)


def raising_ranks(folder: str) -> None:
    run = trainer(
        Path(folder), [NonfiniteMonitor(3, 1)], max_steps=100, devices=2, strategy="ddp", use_distributed_sampler=False
    )
    run.fit(Poisoned(dict.fromkeys(range(4, 100), 1), True), Vectors(4))


@pytest.mark.timeout(120)
def test_all_ranks_end_in_time_and_say_why(tmp_path: Path) -> None:
    """As processes: status and last words."""
    ranks = start_ranks(__name__, "raising_ranks", tmp_path, 2)
    try:
        start = time.monotonic()
        status = [process.wait(max(1.0, 90 - (time.monotonic() - start))) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert status == [1, 1], os.linesep.join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    for rank in range(2):
        log = (tmp_path / f"rank{rank}.log").read_text()
        assert "NonfiniteGradientsError: 3 steps in a row were skipped, up to step 7," in log
        assert "The loss was not finite on rank 1." in log
