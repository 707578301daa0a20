"""Runs as processes of their own, each done once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.comparisons.catalogue import Comparison, Variant
from lightning_scale.errors import ConfigurationError

_ROOT = Path(__file__).parents[2]
_FACTS = "run.json"
_KILL = "examples.comparisons.kill.KillInStep"


@dataclass(frozen=True)
class Run:
    """One run of a variant."""

    comparison: str
    variant: Variant
    seed: int
    folder: Path
    """Where its ``report.csv`` is when it is done."""
    more: tuple[str, ...] = ()
    """Further arguments."""

    def command(self, folder: Path) -> list[str]:
        """What starts it, writing into ``folder``."""
        if self.variant.alone:
            return [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--standalone", f"--nproc-per-node={self.variant.processes}"),
                *("-m", "examples.comparisons.deepspeed_alone", f"--dir={folder}", f"--seed={self.seed}"),
                *self.variant.arguments,
                *self.more,
            ]
        return [
            *(sys.executable, "-m", "lightning_scale.cli", "fit", *self.variant.arguments),
            *(f"--seed_everything={self.seed}", f"--data.seed={self.seed}"),
            f"--trainer.logger.init_args.save_dir={folder}",
            *self.more,
        ]

    def starts(self, folder: Path) -> list[tuple[list[str], int]]:
        """The commands, one after the other, each with the status that it is to end with."""
        step = self.variant.killed_in_step
        if not step:
            return [(self.command(folder), 0)]
        kill = (f"--trainer.callbacks+={_KILL}", f"--trainer.callbacks.step={step}")
        on = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
        return [([*self.command(folder), *kill], -signal.SIGKILL), ([*self.command(folder), on], 0)]

    def facts(self) -> dict[str, Any]:
        """What its result depends on: where it is what it was, a finished run is not done again."""
        files = [argument.removeprefix("--config=") for argument in self.variant.arguments]
        texts = {file: (_ROOT / file).read_text() for file in files if file.endswith(".yaml")}
        command = [*self.variant.arguments, *self.more]
        killed = self.variant.killed_in_step
        return {
            "command": command,
            "killed_in_step": killed,
            "seed": self.seed,
            "files": texts,
            "torch": torch.__version__,
        }

    def done(self) -> bool:
        """Whether its files are there, of this very run."""
        facts = self.folder / _FACTS
        return facts.exists() and json.loads(facts.read_text()) == self.facts()

    def do(self) -> None:
        """Train, in another process; the folder appears when all of it is there.

        Raises:
            ConfigurationError: where the process fails, with its last lines.
        """
        part = self.folder.with_name(self.folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **os.environ}
        for command, expected in self.starts(part):
            with (part / "log.txt").open("ab") as log:
                status = subprocess.run(
                    command, cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
                ).returncode
            if status != expected:
                raise self._failure(f"ended with {status}", part)
        if not (part / "report.csv").exists():
            raise self._failure("wrote no report.csv", part)
        (part / _FACTS).write_text(json.dumps(self.facts(), indent=2) + "\n")
        shutil.rmtree(self.folder, ignore_errors=True)
        part.rename(self.folder)

    def _failure(self, what: str, folder: Path) -> ConfigurationError:
        last = "\n".join((folder / "log.txt").read_text(errors="replace").splitlines()[-15:])
        return ConfigurationError(f"{self.comparison}/{self.variant.name} {what}; its last lines:\n{last}")


def runs_of(comparison: Comparison, folder: Path, quick: bool = False) -> list[Run]:
    """All runs of a comparison, seed by seed; of a quick one the first seed's alone."""
    more = comparison.quick if quick else ()
    return [
        Run(comparison.name, variant, seed, folder / comparison.name / f"{variant.name}_{seed}", more)
        for seed in comparison.seeds[: 1 if quick else None]
        for variant in comparison.variants
    ]


def do_all(runs: Sequence[Run], cores: int, finished: Callable[[Run], object]) -> None:
    """Do what is not done yet, as many at once as there are cores for; runs of several processes one at a time.

    Args:
        runs: In this order.
        cores: Processes at once.
        finished: Called with each run as soon as it is done, in this thread.
    """
    single = [run for run in runs if run.variant.processes == 1]
    several = [run for run in runs if run.variant.processes > 1]
    for group, at_once in ((single, cores), (several, 1)):
        with ThreadPoolExecutor(max(1, at_once)) as pool:
            try:
                for run, _ in zip(group, pool.map(Run.do, group), strict=True):
                    finished(run)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
