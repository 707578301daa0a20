"""Makes docs/works_with.md from what the tests have seen, and times a step of each client."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
import platform
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_scale.callbacks import GradientAccumulation, LEGWWarmup
from lightning_scale.optim import LAMB
from tests.clients.packages import CLIENTS, Client, Run
from tests.clients.seen import FILE
from tests.clients.test_packages import find, observers

PAGE = Path(__file__).parents[2] / "docs" / "works_with.md"
ROUNDS, STEPS = 7, 24

_PAGE = """\
# Works with
Modules that other people wrote, trained under this package's callbacks as their own users train them. `make clients` installs the
packages beside this one, runs them, and writes this page; nothing of a package is edited.

| package | module, data | what its user changes to have every callback |
|---|---|---|
{changes}

## What was seen
Each package trains with `GradientAccumulation`, and again with `BatchSizeRamp`, under all of `LEGWWarmup`,
`TrustRatioMonitor`, `GradientNoiseScale`, `NonfiniteMonitor`, `ExactResume`, `FailTogether`, `StepProgressBar`,
`SaveOnSignal`, `ValidateEvery` and `Resume` at once (but for those that the table above names). Rates and batches are those
that were asked for, the weights have the same bits as without the callbacks that only watch, and a second start goes on.

- *Gradient*: how far the gradients of an epoch's steps, in micro-batches of a quarter, are from those of whole batches in
  one pass, ‖g − g₁‖ / ‖g₁‖.
- *Two ranks*: how far the weights are from one process' after six steps under DDP, relative to their norm.
- *Killed*: a run that SIGKILL ended inside a step, and that was started anew, has the bits of one that nobody stopped.

| package | gradient | two ranks | killed |
|---|---|---|---|
{seen}

## What a step costs
Milliseconds of a LAMB step in four micro-batches, for models this small (the time is Python's): Lightning's own
`accumulate_grad_batches=4`, `GradientAccumulation` in its place, and with it all the callbacks of the runs above, every
monitor looking at every step (but `ValidateEvery` and `Resume`). Medians of {rounds} runs of {steps} steps, by turns; in
brackets their range.

| package | Lightning's own | `GradientAccumulation` | more | with all callbacks |
|---|---|---|---|---|
{costs}

## Ray Train
`TorchTrainer` with two CPU workers, `RayDDPStrategy`, `RayLightningEnvironment`, `prepare_trainer` and
`RayTrainReportCallback`, and in the Trainer `GradientAccumulation`, `LEGWWarmup` and `ExactResume`: nothing has to be
changed. A worker was killed inside a step of the second epoch; Ray started both anew from the last epoch's checkpoint, and
the weights at the end have the bits of two ranks that nobody stopped. Ray {ray}.

## Not run
`lightly` and `solo-learn` want torchvision, for which there was no build where this ran. Packages that are built on
`pytorch_lightning` run under `lightning.pytorch` by [one line](command_line.md#packages-that-import-pytorch_lightning).

{machine}
"""


class Clock(L.Callback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step > len(self.ends):
            self.ends.append(time.perf_counter())


def _milliseconds(client: Client, how: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"default_root_dir": folder}
        callbacks: list[L.Callback] = []
        if how == "Lightning":
            options["accumulate_grad_batches"] = 4
        else:
            callbacks.append(GradientAccumulation(client.batch))
        if how == "all":
            options |= {"enable_progress_bar": True, "logger": CSVLogger(folder)}
            callbacks += [
                LEGWWarmup(client.batch // 4, "4 steps"),
                *observers(replace(client, saves=False, validates=False), Path(folder)),
            ]
        L.seed_everything(1, verbose=False)
        options["callbacks"] = [*callbacks, Clock()]
        trainer = client.fit(Run(client.batch // 4, LAMB, steps=STEPS, options=options))
    ends = find(trainer, Clock).ends
    return 1000 * statistics.median(end - start for start, end in itertools.pairwise(ends))


def _cost(client: Client) -> str:
    rounds: dict[str, list[float]] = {"Lightning": [], "window": [], "all": []}
    for _ in range(ROUNDS):
        for how, seen in rounds.items():
            seen.append(_milliseconds(client, how))
    more = [window - plain for plain, window in zip(rounds["Lightning"], rounds["window"], strict=True)]
    plain, window, everything = (
        f"{statistics.median(seen):.1f} ({min(seen):.1f}-{max(seen):.1f})" for seen in rounds.values()
    )
    return f"| {client} | {plain} | {window} | {statistics.median(more):.2f} ({min(more):.2f}-{max(more):.2f}) | {everything} |"


def main() -> None:
    """Write the page."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seen = json.loads(FILE.read_text())
    rows = []
    for name in CLIENTS:
        found = seen[name]
        apart = f"{found['two_ranks']:.0e}" if "two_ranks" in found else "-"
        rows.append(f"| {name} | {found['gradient']:.0e} | {apart} | {'the same bits' if 'killed' in found else '-'} |")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "lightning", *CLIENTS)}
    changes = [f"| {name} {versions[name]} | {c.module}, {c.data} | {c.change} |" for name, c in CLIENTS.items()]
    machine = f"{date.today()}, {platform.machine()}, {platform.system()}, Python {platform.python_version()}, torch"
    page = _PAGE.format(
        changes="\n".join(changes),
        seen="\n".join(rows),
        costs="\n".join(map(_cost, CLIENTS.values())),
        rounds=ROUNDS,
        steps=STEPS,
        ray=seen["ray"]["version"],
        machine=f"{machine} {versions['torch']}, lightning {versions['lightning']}; one thread, no GPU.",
    )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
